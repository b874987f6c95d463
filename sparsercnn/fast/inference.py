"""A trained model made fast for inference, with the same results."""

import contextlib
import copy
from collections.abc import Callable

import torch
from detectron2.config import CfgNode
from torch import nn

from ..config import PRECISIONS
from ..errors import check_choice
from ..modeling.detector import SparseRCNN
from ..modeling.pooler import FusedPooler
from .convolution import has_onednn
from .fusion import fold_batch_norms, fuse_convolutions, is_fused

MAX_COMPILED_SIZES = 256
"""Padded sizes differ by the stride of the highest level: COCO's images at 800 pixels have a few dozen."""
STAYS_FLOAT32 = {"stem", "linear1", "linear2", "cls_module", "reg_module", "class_logits", "bboxes_delta"}
"""Weights of a ResNet, where rounding the image costs most precision, and of a `RefinementStage`."""


@torch.inference_mode(False)  # the copy's weights must count their changes, see `CachedFirstStage`
def prepare_for_inference(
    model: nn.Module,
    dtype: torch.dtype = torch.float32,
    compile: bool = False,
    winograd: bool = True,
    on_demand: bool = True,
) -> nn.Module:
    """A copy of a detector for inference only; it takes and returns what the detector does in eval mode.

    Batch norms are folded into convolutions, convolutions use the channels-last layout and take over the activations
    and additions that follow them, and what the first refinement stage computes without looking at the image is
    computed once. The model itself stays as it is. Train, change and save the model, and not the copy: on CPUs most of
    the copy's weights are rearranged, and its FPN leaves the finest level to the head, see `on_demand`.

    Args:
        model: a `SparseRCNN`, or any detectron2 model, on the device where it is to run.
        dtype: torch.bfloat16 or torch.float16 run convolutions and matrix products in that precision (autocast). Boxes
            and scores of Sparse R-CNN stay float32, as do its feed-forward layers and on CPUs the stem of a ResNet.
        compile: compile with `torch.compile`, once for each padded image size that comes. Weights become constants.
            Backbones whose operations are all fused already stay as they are, see `is_fused`.
        winograd: compute wide 3×3 convolutions on CPUs with fewer multiplications, see `winograd`: in float32 those of
            at least 128 channels, in bfloat16 of 256.
        on_demand: where the last convolution of the finest level of an FPN is one of these, compute it only where boxes
            read it, see `on_demand`.

    Raises:
        ValueError: the model is such a copy itself.
    """
    if any(isinstance(module, InferenceModel) for module in model.modules()):
        raise ValueError("the model is prepared for inference already; prepare the one that it was made from")
    model = _copy_for_inference(model).requires_grad_(False)
    device_type = next(model.parameters()).device.type
    fold_batch_norms(model)
    # Once, instead of a cast of every weight in every forward pass under autocast; but for what stays float32.
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)) and not STAYS_FLOAT32.intersection(name.split(".")):
            module.to(dtype)
    model = model.to(memory_format=torch.channels_last)
    is_fast = device_type == "cpu" and has_onednn(dtype)
    if is_fast:
        fuse_convolutions(model, winograd)
    if compile:
        _compile(model)
    return InferenceModel(model, device_type, dtype, freeze=compile)


def build_inference_model(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """A copy of `model` for inference as `TEST.PREPARE`, `PRECISION` and `COMPILE` say.

    Raises:
        InputError: `TEST.PRECISION` is unknown.
    """
    check_choice("TEST.PRECISION", cfg.TEST.PRECISION, PRECISIONS)
    dtype = PRECISIONS[cfg.TEST.PRECISION]
    if cfg.TEST.PREPARE:
        return prepare_for_inference(model, dtype, cfg.TEST.COMPILE)
    return InferenceModel(_copy_for_inference(model), next(model.parameters()).device.type, dtype)


def _copy_for_inference(model: nn.Module) -> nn.Module:
    """As it would be had it never been prepared for training: `TEST` decides which kernels it uses."""
    return copy.deepcopy(model).eval()


class InferenceModel(nn.Module):
    """Runs a prepared model in inference mode, under autocast if `dtype` is not float32.

    Args:
        freeze: let `torch.compile` take weights for constants, which it packs for the CPU's kernels and folds.
    """

    def __init__(self, model: nn.Module, device_type: str, dtype: torch.dtype, freeze: bool = False):
        super().__init__()
        self.model = model
        self.device_type = device_type
        self.dtype = dtype
        self.freeze = freeze
        self.eval()

    def train(self, mode: bool = True) -> "InferenceModel":
        """Changes nothing: it always is in evaluation mode."""
        return super().train(False)

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        return self.run(_call, batched_inputs)

    def run(self, function: Callable, batched_inputs: list[dict]):
        """`function(model, batched_inputs)`, the model being the prepared one, in inference mode and its precision."""
        autocast = torch.autocast(self.device_type, self.dtype, enabled=self.dtype != torch.float32)
        # Whoever traces the model asks this setting; as an option of `torch.compile` it would come too late.
        freezing = torch._inductor.config.patch(freezing=True) if self.freeze else contextlib.nullcontext()
        with torch.inference_mode(), autocast, freezing:
            return function(self.model, batched_inputs)


def _call(model: nn.Module, batched_inputs: list[dict]) -> list[dict]:
    return model(batched_inputs)


def _compile(model: nn.Module) -> None:
    """Compile the backbone where that gains, the refinement stages and the arithmetic of pooling, all in place."""
    torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, MAX_COMPILED_SIZES)
    backbone = getattr(model, "backbone", model)
    if not is_fused(backbone):
        backbone.compile(dynamic=False)
    if not isinstance(model, SparseRCNN):
        return
    for stage in model.head.head_series:
        stage.compile(dynamic=False)
    pooler = model.head.routing.pooler
    if isinstance(pooler, FusedPooler):
        pooler.bins.compile(dynamic=False)
