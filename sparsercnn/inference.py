"""A trained model made fast for inference, with the same results."""

import copy

import torch
from detectron2.layers import FrozenBatchNorm2d
from torch import Tensor, nn

from .head import RefinementStage


def prepare_for_inference(model: nn.Module, dtype: torch.dtype = torch.float32, compile: bool = False) -> nn.Module:
    """A copy of a detector for inference only; it takes and returns what the detector does in eval mode.

    Batch norms are folded into convolutions, convolutions use the channels-last layout, and what the first stage
    computes without looking at the image is computed once. The model itself stays as it is.

    Args:
        model: a `SparseRCNN`, or any detectron2 model.
        dtype: torch.bfloat16 or torch.float16 run matrix products in that precision (autocast); boxes stay float32.
        compile: compile with `torch.compile`, once for each padded image size that comes.
    """
    model = copy.deepcopy(model).eval().requires_grad_(False)
    fold_batch_norms(model)
    model = model.to(memory_format=torch.channels_last)
    head = getattr(model, "head", None)
    if head is not None and hasattr(head, "head_series"):
        head.head_series[0] = CachedFirstStage(head.head_series[0])
    return InferenceModel(model, dtype, compile)


class InferenceModel(nn.Module):
    """Runs a prepared model in inference mode, under autocast if `dtype` is not float32."""

    def __init__(self, model: nn.Module, dtype: torch.dtype, compile: bool):
        super().__init__()
        self.model = model
        self.dtype = dtype
        self.train(False)

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        return self._run(self.model, batched_inputs)

    def predict_stages(self, batched_inputs: list[dict]) -> list[list]:
        """See `SparseRCNN.predict_stages`."""
        return self._run(self.model.predict_stages, batched_inputs)

    def _run(self, function, batched_inputs: list[dict]):
        device = next(self.model.parameters()).device.type
        with torch.inference_mode(), torch.autocast(device, self.dtype, enabled=self.dtype != torch.float32):
            return function(batched_inputs)


class CachedFirstStage(nn.Module):
    """The first stage, whose objects are the same for every image: attends once, until its weights change."""

    def __init__(self, stage: RefinementStage):
        super().__init__()
        self.stage = stage
        self._key = None
        self._attended: tuple[Tensor, Tensor] | None = None

    def forward(self, objects: Tensor, roi_features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        key = (objects._version, *(p._version for p in self.stage.parameters()))
        if key != self._key:
            self._key, self._attended = key, self.stage.attend(objects[:1])
        attended, parameters = (t.expand(len(objects), -1, -1) for t in self._attended)
        return self.stage.refine(attended, parameters, roi_features)


def fold_batch_norms(model: nn.Module) -> None:
    """Fold every batch norm that follows a convolution into it, in place.

    Two layouts are known: detectron2's `Conv2d` with a `norm`, and a module or `nn.Sequential` in which a convolution
    is registered right before a batch norm of its width.
    """
    for module in list(model.modules()):
        norm = getattr(module, "norm", None)
        if isinstance(module, nn.Conv2d) and isinstance(norm, (FrozenBatchNorm2d, nn.BatchNorm2d)):
            _fold(module, norm)
            module.norm = None


def _fold(conv: nn.Conv2d, norm: nn.Module) -> None:
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    bias = 0 if conv.bias is None else conv.bias
    conv.weight = nn.Parameter(conv.weight * scale.view(-1, 1, 1, 1), requires_grad=False)
    conv.bias = nn.Parameter((bias - norm.running_mean) * scale + norm.bias, requires_grad=False)
