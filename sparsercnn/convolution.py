"""Convolutions on CPUs, computed as suits their shape; for inference with what follows them included."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .winograd import transform_filters, winograd_conv2d

MAX_PRODUCT_PIXELS = 4096
"""oneDNN's 1×1 convolutions of wide, small maps run at down to a tenth of the rate of the same matrix product."""
MIN_WINOGRAD_CHANNELS = 128
"""Below, transforming the tiles takes what the multiplications save."""


def has_fast_convolutions(dtype: torch.dtype) -> bool:
    """Whether oneDNN is there and this CPU has instructions for its convolutions in `dtype`."""
    if not torch.backends.mkldnn.is_available():
        return False
    pixel = torch.zeros(1, 1, 1, 1, dtype=dtype)
    try:
        torch.ops.mkldnn._convolution_pointwise(pixel, pixel, None, [0, 0], [1, 1], [1, 1], 1, "none", [], None)
    except RuntimeError:
        return False
    return True


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


class FastConv2d(nn.Module):
    """A convolution that takes over the residual addition and the ReLU behind it, computed as suits its shape.

    1×1 convolutions of small maps are matrix products, wide 3×3 convolutions in float32 go through `winograd_conv2d`,
    all others through oneDNN.

    Args:
        conv: without norm and activation; its weights are taken as they are now.
        relu: apply a ReLU.
        winograd: may go through `winograd_conv2d`.
    """

    def __init__(self, conv: nn.Conv2d, relu: bool = False, winograd: bool = True):
        super().__init__()
        self.geometry = (conv.padding, conv.stride, conv.dilation, conv.groups)
        self.relu = relu
        self.is_pointwise = is_pointwise(conv)
        self.is_winograd = winograd and _suits_winograd(conv)
        weight = conv.weight.detach()
        bias = weight.new_zeros(len(weight)) if conv.bias is None else conv.bias.detach()
        self.register_buffer("weight", transform_filters(weight) if self.is_winograd else weight)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """(B, C, H, W) to (B, O, H', W'). The residual, if any, is added before the ReLU, and may be overwritten."""
        x, stride = x.to(self.weight.dtype), self.geometry[1]
        if self.is_winograd:
            y = winograd_conv2d(x, self.weight, self.bias)
        elif self.is_pointwise and pixels(x[:, :1], stride).numel() <= MAX_PRODUCT_PIXELS:
            y = pointwise_conv2d(x, self.weight, self.bias, stride)
        else:
            return self._direct(x, residual)
        if residual is not None:
            y = residual.add_(y)
        return y.relu_() if self.relu else y

    def _direct(self, x: Tensor, residual: Tensor | None) -> Tensor:
        activation = "relu" if self.relu else None
        operands = x, self.weight, self.bias, *self.geometry
        if residual is None:
            return torch.ops.mkldnn._convolution_pointwise(*operands, activation or "none", [], None)
        add = torch.ops.mkldnn._convolution_pointwise_.binary
        return add(residual.to(x.dtype), *operands, "add", 1.0, activation, [], None)


def _suits_winograd(conv: nn.Conv2d) -> bool:
    ones = conv.stride == conv.padding == conv.dilation == (1, 1)
    wide = min(conv.in_channels, conv.out_channels) >= MIN_WINOGRAD_CHANNELS
    is_float = conv.weight.dtype == torch.float32
    return ones and wide and is_float and conv.kernel_size == (3, 3) and conv.groups == 1
