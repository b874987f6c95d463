"""Convolutions for inference on CPUs, computed as suits their shape, with what follows them included."""

import torch
from torch import Tensor, nn

from .winograd import suits_winograd, transform_filters, winograd_conv2d


def has_onednn(dtype: torch.dtype) -> bool:
    """Whether oneDNN is there and this CPU has the instructions that it needs for `dtype`."""
    if not torch.backends.mkldnn.is_available():
        return False
    pixel, row = torch.zeros(1, 1, 1, 1, dtype=dtype), torch.zeros(1, 1, dtype=dtype)
    try:
        torch.ops.mkldnn._convolution_pointwise(pixel, pixel, None, [0, 0], [1, 1], [1, 1], 1, "none", [], None)
        torch.ops.mkldnn._linear_pointwise(row, row, None, "none", [], "")
    except RuntimeError:
        return False
    return True


class FastConv2d(nn.Module):
    """A convolution that takes over the residual addition and the ReLU behind it, computed as suits its shape.

    Wide 3×3 convolutions go through `winograd_conv2d`, all others through oneDNN.

    Args:
        conv: without norm and activation; its weights are taken as they are now.
        relu: apply a ReLU.
        winograd: may go through `winograd_conv2d`.
    """

    def __init__(self, conv: nn.Conv2d, relu: bool = False, winograd: bool = True):
        super().__init__()
        self.geometry = (conv.padding, conv.stride, conv.dilation, conv.groups)
        self.relu = relu
        self.is_winograd = winograd and suits_winograd(conv)
        weight = conv.weight.detach()
        bias = weight.new_zeros(len(weight)) if conv.bias is None else conv.bias.detach()
        self.register_buffer("weight", transform_filters(weight) if self.is_winograd else weight)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """(B, C, H, W) to (B, O, H', W'). The residual, if any, is added before the ReLU, and may be overwritten."""
        x = x.to(self.weight.dtype)
        if not self.is_winograd:
            return self._direct(x, residual)
        y = winograd_conv2d(x, self.weight, self.bias)
        if residual is not None:
            y = residual.to(y.dtype).add_(y)
        return y.relu_() if self.relu else y

    def _direct(self, x: Tensor, residual: Tensor | None) -> Tensor:
        activation = "relu" if self.relu else None
        operands = x, self.weight, self.bias, *self.geometry
        if residual is None:
            return torch.ops.mkldnn._convolution_pointwise(*operands, activation or "none", [], None)
        add = torch.ops.mkldnn._convolution_pointwise_.binary
        return add(residual.to(x.dtype), *operands, "add", 1.0, activation, [], None)
