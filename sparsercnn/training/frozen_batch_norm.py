"""Frozen batch norm applied to the weights of the convolution before it, which are smaller than what comes out of it.

A frozen batch norm is y · s + b with fixed s and b for each channel, so conv(x, W) · s + b = conv(x, W · s) + b, and
the gradient reaches W through the product.
"""

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, nn
from torch.nn import functional as F


class FrozenNormConv2d(Conv2d):
    """detectron2's `Conv2d` with a `FrozenBatchNorm2d`: the same parameters, names and results."""

    def forward(self, x: Tensor) -> Tensor:
        if self.norm is None:  # folded away for inference
            return super().forward(x)
        scale = self.norm.weight * (self.norm.running_var + self.norm.eps).rsqrt()
        mean = self.norm.running_mean if self.bias is None else self.norm.running_mean - self.bias
        bias = self.norm.bias - mean * scale
        geometry = self.stride, self.padding, self.dilation, self.groups
        x = _ScaledConv2d.apply(x, self.weight, scale.view(-1, 1, 1, 1), bias, geometry)
        return x if self.activation is None else self.activation(x)


class _ScaledConv2d(torch.autograd.Function):
    """conv2d(x, weight · scale, bias) that multiplies again in the backward pass rather than keep a second weight."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, geometry: tuple) -> Tensor:
        ctx.save_for_backward(x, weight, scale)
        ctx.geometry = geometry
        return F.conv2d(x, weight * scale, bias, *geometry)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.geometry
        # Autocast may have run the convolution in another precision than that of its inputs.
        x, scaled = x.to(grad.dtype), (weight * scale).to(grad.dtype)
        wanted = [ctx.needs_input_grad[i] for i in (0, 1, 3)]
        grad_x, grad_scaled, grad_bias = torch.ops.aten.convolution_backward(
            grad, x, scaled, [len(scaled)], stride, padding, dilation, False, [0, 0], groups, wanted
        )
        grad_weight = None if grad_scaled is None else grad_scaled * scale
        return grad_x, grad_weight, None, grad_bias, None


def apply_frozen_norms_to_weights(model: nn.Module) -> None:
    """Make every detectron2 `Conv2d` with a `FrozenBatchNorm2d` a `FrozenNormConv2d`, in place."""
    for module in model.modules():
        if type(module) is Conv2d and isinstance(module.norm, FrozenBatchNorm2d):
            module.__class__ = FrozenNormConv2d
