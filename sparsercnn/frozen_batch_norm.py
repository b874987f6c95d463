"""Frozen batch norm applied to the weights of the convolution before it, which are smaller than what comes out of it.

A frozen batch norm is y · s + b with fixed s and b for each channel, so conv(x, W) · s + b = conv(x, W · s) + b, and
the gradient reaches W through the product.
"""

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, nn
from torch.nn import functional as F


def is_pointwise(conv: nn.Conv2d) -> bool:
    """Whether it is a matrix product at each pixel."""
    return conv.kernel_size == (1, 1) and conv.padding == (0, 0) and conv.groups == 1


def pixels(x: Tensor, stride: tuple[int, int]) -> Tensor:
    """(B, C, H, W) to those that a 1×1 convolution of that stride reads: a view, (B, H', W', C)."""
    return x[:, :, :: stride[0], :: stride[1]].permute(0, 2, 3, 1)


def pointwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor, stride: tuple[int, int]) -> Tensor:
    """A 1×1 convolution without padding as a matrix product; its result is channels-last."""
    read = pixels(x, stride)
    # As one matrix: a strided input of more dimensions would become a product with a copy of the weight for each row.
    y = F.linear(read.flatten(0, 2), weight.flatten(1), bias)
    return y.unflatten(0, read.shape[:3]).permute(0, 3, 1, 2)


class FrozenNormConv2d(Conv2d):
    """detectron2's `Conv2d` with a `FrozenBatchNorm2d`: the same parameters, names and results."""

    def forward(self, x: Tensor) -> Tensor:
        if self.norm is None:  # folded away for inference
            return super().forward(x)
        scale = self.norm.weight * (self.norm.running_var + self.norm.eps).rsqrt()
        mean = self.norm.running_mean if self.bias is None else self.norm.running_mean - self.bias
        bias = self.norm.bias - mean * scale
        geometry = self.stride, self.padding, self.dilation, self.groups
        scale = scale.view(-1, 1, 1, 1)
        x = _ScaledConv2d.apply(x, self.weight, scale, bias, geometry, self._is_product(x))
        return x if self.activation is None else self.activation(x)

    def _is_product(self, x: Tensor) -> bool:
        """Elsewhere, and in other layouts, the library's convolution is faster than a matrix product."""
        if torch.compiler.is_compiling() or not is_pointwise(self):
            return False
        return x.device.type == "cpu" and x.is_contiguous(memory_format=torch.channels_last)


class _ScaledConv2d(torch.autograd.Function):
    """conv2d(x, weight · scale, bias) that multiplies again in the backward pass rather than keep a second weight."""

    @staticmethod
    def forward(
        ctx, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, geometry: tuple, is_product: bool
    ) -> Tensor:
        ctx.save_for_backward(x, weight, scale)
        ctx.geometry, ctx.is_product = geometry, is_product
        if is_product:
            y = pointwise_conv2d(x, weight * scale, bias, stride=geometry[0])
            return y.new_empty(0).set_(y)  # the same memory, but no view: a ReLU in place may follow
        return F.conv2d(x, weight * scale, bias, *geometry)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        # Autocast may have run the convolution in another precision than that of its inputs.
        x, scaled = x.to(grad.dtype), (weight * scale).to(grad.dtype)
        wanted = [ctx.needs_input_grad[i] for i in (0, 1, 3)]
        gradients = _product_gradients if ctx.is_product else _convolution_gradients
        grad_x, grad_scaled, grad_bias = gradients(grad, x, scaled, ctx.geometry, wanted)
        grad_weight = None if grad_scaled is None else grad_scaled * scale
        return grad_x, grad_weight, None, grad_bias, None, None


Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]
"""Of input, weight and bias, where wanted."""


def _convolution_gradients(grad: Tensor, x: Tensor, weight: Tensor, geometry: tuple, wanted: list[bool]) -> Gradients:
    stride, padding, dilation, groups = geometry
    return torch.ops.aten.convolution_backward(
        grad, x, weight, [len(weight)], stride, padding, dilation, False, [0, 0], groups, wanted
    )


def _product_gradients(grad: Tensor, x: Tensor, weight: Tensor, geometry: tuple, wanted: list[bool]) -> Gradients:
    """Those of a 1×1 convolution: oneDNN's run at half the rate of matrix products."""
    stride, rows = geometry[0], pixels(grad, (1, 1))
    grad_x = grad_weight = None
    if wanted[0]:
        grad_x = (rows @ weight.flatten(1)).permute(0, 3, 1, 2)
        if stride != (1, 1):
            read, grad_x = grad_x, torch.zeros_like(x)
            grad_x[:, :, :: stride[0], :: stride[1]] = read
    if wanted[1]:
        grad_weight = (rows.flatten(0, 2).T @ pixels(x, stride).flatten(0, 2)).view_as(weight)
    return grad_x, grad_weight, rows.sum((0, 1, 2)) if wanted[2] else None


def apply_frozen_norms_to_weights(model: nn.Module) -> None:
    """Make every detectron2 `Conv2d` with a `FrozenBatchNorm2d` a `FrozenNormConv2d`, in place."""
    for module in model.modules():
        is_plain = type(module) is Conv2d and not isinstance(module.padding, str)
        if is_plain and isinstance(module.norm, FrozenBatchNorm2d):
            module.__class__ = FrozenNormConv2d
