"""A trained model made fast for inference, with the same results."""

import copy
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from torch import Tensor, fx, nn

from ..errors import InputError
from ..modeling.detector import SparseRCNN
from ..modeling.head import RefinementStage
from ..modeling.roi_routing import FusedPooler
from .fusion import fold_norms, fuse_convolutions, image_convolutions
from .on_demand import convolve_on_demand
from .packed_linear import pack_linear_layers
from .processor import has_onednn, winograd_pays
from .tracing import TracedBackbone, trace_networks
from .trained_convolution import TrainedConv2d

MAX_COMPILED_SIZES = 256
"""Padded sizes differ by the stride of the highest level: COCO's images at 800 pixels have a few dozen."""
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What `prepare_for_inference` does on CPUs, part by part, so that a benchmark can leave one out.

    Attributes:
        winograd: convolve wide layers with fewer multiplications, see `winograd`.
        on_demand: convolve the finest level where boxes read it only, see `on_demand`.
        packed_linear: rearrange the weights of large linear layers once, see `packed_linear`.
        first_stage: compute once what the first refinement stage computes without looking at the image.
    """

    winograd: bool = True
    on_demand: bool = True
    packed_linear: bool = True
    first_stage: bool = True


def prepare_for_inference(
    model: nn.Module, dtype: torch.dtype = torch.float32, compile: bool = False
) -> "InferenceModel":
    """A copy of a detector for inference only; it takes and returns what the detector does in eval mode.

    Batch norms are folded into convolutions, convolutions use the channels-last layout and on CPUs take over the
    activations and additions that follow them, and what the first refinement stage computes without looking at the
    image is computed once. The model itself stays as it is. Train, change and save the model, and not the copy: most of
    the copy's weights are rearranged, its backbone is a graph of calls, and on CPUs the finest level may be left to the
    head, see `on_demand`.

    Args:
        model: a `SparseRCNN`, any detectron2 model, or a backbone, on the device where it is to run.
        dtype: torch.bfloat16 or torch.float16 run convolutions and matrix products in that precision (autocast). Boxes
            and scores of Sparse R-CNN stay float32, as do its feed-forward layers and on CPUs the convolutions that
            read the image.
        compile: compile with `torch.compile`, once for each padded image size that comes. For GPUs: on CPUs it would
            gain nothing and is not done.

    Raises:
        ValueError: the model is such a copy itself.
    """
    return prepare_parts(model, dtype, compile, Parts())


@torch.inference_mode(False)  # the copy's weights must count their changes, see `CachedFirstStage`
def prepare_parts(model: nn.Module, dtype: torch.dtype, compile: bool, parts: Parts) -> "InferenceModel":
    """`prepare_for_inference` with some of its parts."""
    if any(isinstance(module, InferenceModel | CachedFirstStage) for module in model.modules()):
        raise ValueError("the model is prepared for inference already; prepare the one that it was made from")
    device_type = next(model.parameters()).device.type
    is_fast = device_type == "cpu" and has_onednn(dtype)
    model = trace_networks(_copy_for_inference(model).requires_grad_(False))
    graphs = [module for module in model.modules() if isinstance(module, fx.GraphModule)]
    for graph in graphs:
        fold_norms(graph)
    exact = _float32_modules(model, is_fast)
    # Once, instead of a cast of every weight in every forward pass under autocast.
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module not in exact:
            module.to(dtype)
    model.to(memory_format=torch.channels_last)
    if is_fast:
        for graph in graphs:
            fuse_convolutions(graph, parts.winograd and winograd_pays(dtype), dtype)
    if isinstance(model, SparseRCNN):
        first, *others = model.head.head_series
        if parts.first_stage:
            model.head.head_series[0] = CachedFirstStage(first)
        if is_fast and parts.on_demand:
            convolve_on_demand(model)
        # All but the first stage, which must notice new weights; it makes its dynamic matrices only once anyway.
        if is_fast and parts.packed_linear:
            pack_linear_layers(others, rows=model.num_proposals)
    if compile and device_type != "cpu":
        _compile(model)
    return InferenceModel(model, device_type, dtype)


def _float32_modules(model: nn.Module, is_fast: bool) -> set[nn.Module]:
    """Layers of a model that keep float32 weights: those that compute in float32 also under autocast."""
    exact = set()
    for module in model.modules():
        if isinstance(module, RefinementStage):
            names = ("linear1", "linear2", "cls_module", "reg_module", "class_logits", "bboxes_delta")
            exact.update(layer for name in names for layer in getattr(module, name).modules())
        # Rounding the image costs most precision. Fast convolutions keep their precision also under autocast.
        if isinstance(module, TracedBackbone) and is_fast:
            exact.update(image_convolutions(module.traced))
    return exact


def inference_precision(cfg: CfgNode) -> torch.dtype:
    """The type that `TEST.PRECISION` names.

    Raises:
        InputError: it is unknown.
    """
    if cfg.TEST.PRECISION not in PRECISIONS:
        raise InputError(f"TEST.PRECISION is {cfg.TEST.PRECISION!r}; choose one of {', '.join(PRECISIONS)}")
    return PRECISIONS[cfg.TEST.PRECISION]


def check_inference(cfg: CfgNode) -> None:
    """Check how a model is to run, which takes no model.

    Raises:
        InputError: see `inference_precision`; or a model is to be compiled without being prepared.
    """
    inference_precision(cfg)
    if cfg.TEST.COMPILE and not cfg.TEST.PREPARE:
        raise InputError("TEST.COMPILE is True, but TEST.PREPARE is False: set TEST.PREPARE to True")


def build_inference_model(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """A copy of `model` for inference as `TEST.PREPARE`, `PRECISION` and `COMPILE` say.

    Raises:
        InputError: see `check_inference`.
    """
    check_inference(cfg)
    dtype = inference_precision(cfg)
    if cfg.TEST.PREPARE:
        return prepare_for_inference(model, dtype, cfg.TEST.COMPILE)
    return InferenceModel(_copy_for_inference(model), next(model.parameters()).device.type, dtype)


def _copy_for_inference(model: nn.Module) -> nn.Module:
    """As it would be had it never been prepared for training: `TEST` decides which kernels it uses."""
    model = copy.deepcopy(model).eval()
    for module in model.modules():
        if isinstance(module, TrainedConv2d):
            module.uses_cpu_kernels = False
    return model


class InferenceModel(nn.Module):
    """Runs a prepared model in inference mode, under autocast if `dtype` is not float32."""

    def __init__(self, model: nn.Module, device_type: str, dtype: torch.dtype):
        super().__init__()
        self.model = model
        self.device_type = device_type
        self.dtype = dtype
        self.eval()

    def train(self, mode: bool = True) -> "InferenceModel":
        """Changes nothing: it always is in evaluation mode."""
        return super().train(False)

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        return self._run(self.model, batched_inputs)

    def predict_stages(self, batched_inputs: list[dict]) -> list[list]:
        """See `SparseRCNN.predict_stages`."""
        return self._run(self.model.predict_stages, batched_inputs)

    def _run(self, function, batched_inputs: list[dict]):
        autocast = torch.autocast(self.device_type, self.dtype, enabled=self.dtype != torch.float32)
        with torch.inference_mode(), autocast:
            return function(batched_inputs)


class CachedFirstStage(nn.Module):
    """The first stage, whose objects are the same for every image: attends once, until its weights change.

    It notices what PyTorch counts as a change: not what is written through `tensor.data`.
    """

    def __init__(self, stage: RefinementStage):
        super().__init__()
        self.stage = stage
        self._state: list | None = None
        self._attended: tuple[Tensor, Tensor, Tensor] | None = None

    def forward(self, objects: Tensor, roi_features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        state = [_state(tensor) for tensor in (objects, *self.stage.parameters())]
        if state != self._state:
            self._state, self._attended = state, self.stage.attend(objects[:1])
        attended = (t.expand(len(objects), -1, -1) for t in self._attended)
        return self.stage.refine(*attended, roi_features)


def _state(tensor: Tensor) -> tuple:
    """Changes when the tensor is replaced, moved, cast or written to."""
    version = 0 if tensor.is_inference() else tensor._version
    return tensor.data_ptr(), tensor.dtype, tensor.device, version


def _compile(model: nn.Module) -> None:
    """Compile the backbone where that gains, the refinement stages and the arithmetic of pooling, all in place."""
    torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, MAX_COMPILED_SIZES)
    backbone = getattr(model, "backbone", model)
    backbone.compile(dynamic=False)
    if not isinstance(model, SparseRCNN):
        return
    for stage in model.head.head_series:
        stage = getattr(stage, "stage", stage)
        stage.refine = torch.compile(stage.refine, dynamic=False)
        stage.attend = torch.compile(stage.attend, dynamic=False)
    pooler = model.head.routing.pooler
    if isinstance(pooler, FusedPooler):
        pooler.bins.compile(dynamic=False)
