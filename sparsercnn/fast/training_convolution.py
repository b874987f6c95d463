"""Wide 3×3 convolutions of training, on CPUs in float32 with a quarter of the multiplications, their gradients too."""

import math
from typing import Any

import torch
from detectron2.layers import Conv2d
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .winograd import suits_winograd, tiles_of, transform_filters, winograd_conv2d
from .winograd_gradients import input_gradient, weight_gradient


def use_winograd_in_training(model: nn.Module) -> None:
    """On a CPU, replace each convolution that `suits_winograd` by a `WinogradConv2d` with its parameters, in place."""
    if next(model.parameters()).device.type != "cpu":
        return
    ours: dict[object, nn.Module] = {
        module: WinogradConv2d(module)
        for module in model.modules()
        if type(module) is Conv2d and suits_winograd(module)
    }
    for module in list(model.modules()):
        for name, child in module.named_children():
            if child in ours:
                setattr(module, name, ours[child])
        # detectron2's FPN keeps its convolutions in plain lists too, and calls them from there.
        for value in vars(module).values():
            if isinstance(value, list) and any(isinstance(item, nn.Module) for item in value):
                value[:] = [ours.get(item, item) for item in value]


class WinogradConv2d(Conv2d):
    """detectron2's `Conv2d`, for training: the same parameters, names, results and first derivatives.

    Through Winograd's algorithm where that is faster: for float32 maps in the channels-last layout with enough tiles.

    Args:
        conv: a 3×3 convolution of stride 1 and padding 1, whose parameters, norm and activation are taken over.
    """

    def __init__(self, conv: Conv2d):
        geometry = {"kernel_size": conv.kernel_size, "padding": conv.padding, "bias": False, "device": "meta"}
        super().__init__(conv.in_channels, conv.out_channels, **geometry, norm=conv.norm, activation=conv.activation)
        self.weight, self.bias = conv.weight, conv.bias

    def forward(self, x: Tensor) -> Tensor:
        if self.is_faster(x):
            x = _Winograd.apply(x, self.weight, self.bias)
        else:
            x = F.conv2d(x, self.weight, self.bias, padding=self.padding)
        if self.norm is not None:
            x = self.norm(x)
        return x if self.activation is None else self.activation(x)

    def is_faster(self, x: Tensor) -> bool:
        """Whether Winograd's algorithm computes this (B, C, H, W) input, and in less time."""
        if x.device.type != "cpu" or not x.is_contiguous(memory_format=torch.channels_last):
            return False
        if torch.is_autocast_enabled("cpu") or not suits_winograd(self) or self.weight.dtype == torch.bfloat16:
            return False
        # The products read 36 C·O weights: it must pay off.
        return math.prod(tiles_of(x)) >= 2 * max(self.in_channels, self.out_channels)


class _Winograd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        y = winograd_conv2d(x, transform_filters(weight), bias)
        return y.new_empty(0).set_(y)  # the same memory, and no view: a ReLU in place may follow

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        # The gradient of the input, which is much the largest, last: it need not be there while the others are made.
        of_weight = weight_gradient(gradient, x) if wants_weight else None
        of_bias = gradient.sum((0, 2, 3)) if wants_bias else None
        return input_gradient(gradient, weight) if wants_x else None, of_weight, of_bias
