"""Linear layers for training on CPUs, where in float32 oneDNN's products are faster than those PyTorch takes."""

import functools

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ..modeling.head import DynamicLayer
from .processor import has_onednn


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`torch.nn.functional.linear`, without a gradient of its own."""
    is_float32 = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32
    if is_float32 and not torch.is_autocast_enabled("cpu") and _has_onednn():
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


@functools.cache
def _has_onednn() -> bool:
    return has_onednn(torch.float32)


class TrainedDynamicLayer(DynamicLayer):
    """See `DynamicLayer`: the same parameters and results."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        is_plain = x.device.type != "cpu" or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling()
        if is_plain or not torch.is_grad_enabled():
            return super().forward(x)
        return _TwoProducts.apply(x, self.weight, self.bias)


def speed_up_dynamic_layers(model: nn.Module) -> None:
    """Make every `DynamicLayer` a `TrainedDynamicLayer`, in place."""
    for module in model.modules():
        if type(module) is DynamicLayer:
            module.__class__ = TrainedDynamicLayer


class _TwoProducts(torch.autograd.Function):
    """Each half by itself: what is as large as a half is neither cut apart nor put together again."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, weight)
        first, second = (linear(x, *half) for half in zip(weight.chunk(2), bias.chunk(2), strict=True))
        return first, second

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        grad_x = grad_weight = grad_bias = None
        gradients = [g.flatten(0, -2) for g in gradients]
        with torch.autocast("cpu", enabled=False):
            if wants_x:
                first, second = weight.chunk(2)
                grad_x = (gradients[0] @ first).addmm_(gradients[1], second).view_as(x)
            if wants_weight:
                grad_weight = torch.empty_like(weight)
                for g, half in zip(gradients, grad_weight.chunk(2), strict=True):
                    torch.mm(g.t(), x.flatten(0, -2), out=half)
        if wants_bias:
            grad_bias = torch.cat([g.sum(0) for g in gradients])
        return grad_x, grad_weight, grad_bias
