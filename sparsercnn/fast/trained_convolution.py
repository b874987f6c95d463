"""Convolutions for training, computed on CPUs as suits their shape, with a frozen batch norm applied to their weights.

A frozen batch norm is y · s + b with fixed s and b for each channel, so conv(x, W) · s + b = conv(x, W · s) + b, and
the gradient reaches W through the product. Weights are smaller than what comes out of the convolution.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .trained_linear import linear
from .winograd import suits_winograd, tiles_of, transform_filters, winograd_conv2d
from .winograd_gradients import input_gradient, weight_gradient

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]
"""Of input, weight and bias, where wanted."""


class Algorithm(NamedTuple):
    """`forward` (x, weight, bias, geometry) and `gradients` (gradient, x, weight, geometry, wanted) of a convolution.

    `geometry` is stride, padding, dilation and groups; `wanted` says which of the `Gradients` are.
    """

    forward: Callable[..., Tensor]
    gradients: Callable[..., Gradients]


class TrainedConv2d(Conv2d):
    """detectron2's `Conv2d`, the same parameters, names, results and first derivatives.

    Attributes:
        folds_norm: apply a `FrozenBatchNorm2d` to the weights.
        uses_cpu_kernels: on CPUs, if the layout is channels-last, compute 1×1 convolutions as matrix products, and wide
            3×3 ones in float32 with fewer multiplications, see `winograd`.
    """

    folds_norm: bool = False
    uses_cpu_kernels: bool = False

    def forward(self, x: Tensor) -> Tensor:
        norm, scale, bias = self.norm, None, self.bias
        if self.folds_norm and isinstance(norm, FrozenBatchNorm2d):
            scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
            mean = norm.running_mean if bias is None else norm.running_mean - bias
            norm, bias, scale = None, norm.bias - mean * scale, scale.view(-1, 1, 1, 1)
        geometry = self.stride, self.padding, self.dilation, self.groups
        algorithm = self._algorithm(x)
        if scale is None and algorithm is DIRECT:
            x = F.conv2d(x, self.weight, bias, *geometry)
        else:
            x = _Convolution.apply(x, self.weight, scale, bias, geometry, algorithm)
        if norm is not None:
            x = norm(x)
        return x if self.activation is None else self.activation(x)

    def _algorithm(self, x: Tensor) -> Algorithm:
        is_fit = x.device.type == "cpu" and x.is_contiguous(memory_format=torch.channels_last)
        if self.uses_cpu_kernels and is_fit and not torch.compiler.is_compiling():
            return _choose_on_cpu(self, x)
        return DIRECT


def _choose_on_cpu(conv: nn.Conv2d, x: Tensor) -> Algorithm:
    if conv.kernel_size == (1, 1) and conv.padding == (0, 0) and conv.groups == 1:
        return PRODUCT
    is_half = conv.weight.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
    if suits_winograd(conv) and not is_half:
        # The products read 36 C·O weights: it must pay off.
        if math.prod(tiles_of(x)) >= 2 * max(conv.in_channels, conv.out_channels):
            return WINOGRAD
    return DIRECT


def speed_up_convolutions(model: nn.Module, fold_norms: bool = True, cpu_kernels: bool = True) -> None:
    """Make every detectron2 `Conv2d` a `TrainedConv2d`, in place."""
    for module in model.modules():
        if type(module) in (Conv2d, TrainedConv2d) and not isinstance(module.padding, str):
            module.__class__ = TrainedConv2d
            module.folds_norm, module.uses_cpu_kernels = fold_norms, cpu_kernels


class _Convolution(torch.autograd.Function):
    """conv2d(x, weight · scale, bias) that multiplies again in the backward pass rather than keep a second weight."""

    @staticmethod
    def forward(
        ctx, x: Tensor, weight: Tensor, scale: Tensor | None, bias: Tensor | None, geometry: tuple, algorithm: Algorithm
    ) -> Tensor:
        ctx.save_for_backward(x, weight, scale)
        ctx.geometry, ctx.algorithm = geometry, algorithm
        return algorithm.forward(x, weight if scale is None else weight * scale, bias, geometry)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        # Autocast may have run the convolution in another precision than that of its inputs.
        x, scaled = x.to(grad.dtype), (weight if scale is None else weight * scale).to(grad.dtype)
        wanted = [ctx.needs_input_grad[i] for i in (0, 1, 3)]
        grad_x, grad_weight, grad_bias = ctx.algorithm.gradients(grad, x, scaled, ctx.geometry, wanted)
        if grad_weight is not None and scale is not None:
            grad_weight = grad_weight * scale
        return grad_x, grad_weight, None, grad_bias, None, None


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: tuple) -> Tensor:
    return F.conv2d(x, weight, bias, *geometry)


def _convolution_gradients(grad: Tensor, x: Tensor, weight: Tensor, geometry: tuple, wanted: list[bool]) -> Gradients:
    stride, padding, dilation, groups = geometry
    return torch.ops.aten.convolution_backward(
        grad, x, weight, [len(weight)], stride, padding, dilation, False, [0, 0], groups, wanted
    )


def _no_view(y: Tensor) -> Tensor:
    """The same memory: a ReLU in place may follow."""
    return y.new_empty(0).set_(y)


def _pixels(x: Tensor, stride: tuple[int, int]) -> Tensor:
    """(B, C, H, W) to those that a 1×1 convolution of that stride reads: a view, (B, H', W', C)."""
    return x[:, :, :: stride[0], :: stride[1]].permute(0, 2, 3, 1)


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: tuple) -> Tensor:
    read = _pixels(x, stride=geometry[0])
    # As one matrix: a strided input of more dimensions would become a product with a copy of the weight for each row.
    y = linear(read.flatten(0, 2), weight.flatten(1), bias)
    return _no_view(y.unflatten(0, read.shape[:3]).permute(0, 3, 1, 2))


def _product_gradients(grad: Tensor, x: Tensor, weight: Tensor, geometry: tuple, wanted: list[bool]) -> Gradients:
    stride, rows = geometry[0], _pixels(grad, (1, 1))
    grad_x = grad_weight = None
    if wanted[0]:
        grad_x = (rows @ weight.flatten(1)).permute(0, 3, 1, 2)
        if stride != (1, 1):
            read, grad_x = grad_x, torch.zeros_like(x)
            grad_x[:, :, :: stride[0], :: stride[1]] = read
    if wanted[1]:
        grad_weight = (rows.flatten(0, 2).T @ _pixels(x, stride).flatten(0, 2)).view_as(weight)
    return grad_x, grad_weight, rows.sum((0, 1, 2)) if wanted[2] else None


def _convolve_tiles(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: tuple) -> Tensor:
    return _no_view(winograd_conv2d(x, transform_filters(weight), bias))


def _tiles_gradients(grad: Tensor, x: Tensor, weight: Tensor, geometry: tuple, wanted: list[bool]) -> Gradients:
    grad = grad.contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", enabled=False):
        # The gradient of the input, which is much the largest, last: it need not be there while the others are made.
        grad_weight = weight_gradient(grad, x) if wanted[1] else None
        grad_bias = grad.sum((0, 2, 3)) if wanted[2] else None
        return input_gradient(grad, weight) if wanted[0] else None, grad_weight, grad_bias


DIRECT = Algorithm(_convolve, _convolution_gradients)
"""The library's convolutions."""
PRODUCT = Algorithm(_multiply, _product_gradients)
"""1×1 convolutions as matrix products: on CPUs the library's own run at half their rate in the backward pass."""
WINOGRAD = Algorithm(_convolve_tiles, _tiles_gradients)
"""See `winograd` and `winograd_gradients`."""
