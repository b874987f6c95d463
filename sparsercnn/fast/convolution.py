"""Convolutions for inference on CPUs, computed as suits their shape, with what follows them included."""

import functools
from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from .winograd import suits_winograd, transform_filters, winograd_conv2d


class Activation(NamedTuple):
    """A function of each element that oneDNN applies to what a convolution gives, while it is in registers.

    Attributes:
        name: oneDNN's name for it.
        algorithm: which approximation, where oneDNN has several.
        in_place: the same for a tensor that is written already.
    """

    name: str
    algorithm: str | None
    in_place: Callable[[Tensor], Tensor]


ACTIVATIONS: dict[str | None, Activation] = {
    None: Activation("none", None, lambda y: y),
    "relu": Activation("relu", None, torch.ops.aten.relu_),
    "silu": Activation("swish", None, torch.ops.aten.silu_),
    "gelu": Activation("gelu", "none", torch.ops.aten.gelu_),
    "gelu_tanh": Activation("gelu", "tanh", functools.partial(torch.ops.aten.gelu_, approximate="tanh")),
    "hardswish": Activation("hardswish", None, torch.ops.aten.hardswish_),
    "hardsigmoid": Activation("hardsigmoid", None, torch.ops.aten.hardsigmoid_),
    "sigmoid": Activation("sigmoid", None, torch.ops.aten.sigmoid_),
    "tanh": Activation("tanh", None, torch.ops.aten.tanh_),
}


class FastConv2d(nn.Module):
    """A convolution that takes over the addition and the activation behind it.

    Wide 3×3 convolutions go through `winograd_conv2d`, all others through oneDNN.

    Args:
        conv: zero-padded by numbers, without norm and activation. Its weights are taken as they are now, their type is
            that of the multiplications.
        winograd: may go through `winograd_conv2d`.
        output_dtype: type of the result, that of the weights if None.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, conv: nn.Conv2d, winograd: bool = True, output_dtype: torch.dtype | None = None):
        super().__init__()
        weight = conv.weight.detach()
        bias = weight.new_zeros(len(weight)) if conv.bias is None else conv.bias.detach()
        self.dtype = weight.dtype
        self.output_dtype = output_dtype or weight.dtype
        padding = cast(tuple[int, ...], conv.padding)
        self.geometry = (padding, conv.stride, conv.dilation, conv.groups)
        self.axes = tuple(zip(conv.kernel_size, padding, conv.stride, conv.dilation, strict=True))
        self.is_winograd = winograd and suits_winograd(conv)
        # What is arranged for a kernel is no state to save or load.
        self.register_buffer("weight", transform_filters(weight) if self.is_winograd else weight, persistent=False)
        self.register_buffer("bias", bias, persistent=False)

    @property
    def keeps_size(self) -> bool:
        """Whether the result is as high and wide as the input, whatever that is."""
        return all(stride == 1 and 2 * padding == dilation * (k - 1) for k, padding, stride, dilation in self.axes)

    def forward(
        self, x: Tensor, addend: Tensor | None = None, activation: str | None = None, overwrite: bool = False
    ) -> Tensor:
        """activation(convolution of x + addend).

        Args:
            x: (B, C, H, W).
            addend: what broadcasts with the (B, O, H', W') of the convolution, if anything.
            activation: one of `ACTIVATIONS`, with an addend None or "relu" only.
            overwrite: the addend may be overwritten, so that the sum needs no memory of its own.

        Returns:
            (B, O, H', W'), channels-last.
        """
        x = x.to(self.dtype)
        in_place = ACTIVATIONS[activation].in_place
        if addend is None:
            y = in_place(self._winograd(x)) if self.is_winograd else self._direct(x, activation)
        elif not isinstance(addend, Tensor) or addend.shape != self._output_shape(x):
            y = in_place(self(x) + addend)
        elif self.is_winograd:
            y = in_place(self._winograd(x).add_(addend))
        elif overwrite:
            y = torch.ops.mkldnn._convolution_pointwise_.binary(addend.to(self.dtype), x, *self._sum(activation))
        elif self.geometry[-1] == 1:
            y = torch.ops.mkldnn._convolution_pointwise.binary(x, addend.to(self.dtype), *self._sum(activation))
        else:  # there PyTorch's operator with memory of its own knows no half precision
            y = in_place(self._direct(x, None).add_(addend))
        return y.to(self.output_dtype)

    def _winograd(self, x: Tensor) -> Tensor:
        return winograd_conv2d(x, self.weight, self.bias)

    def _direct(self, x: Tensor, activation: str | None) -> Tensor:
        name, algorithm, _ = ACTIVATIONS[activation]
        return torch.ops.mkldnn._convolution_pointwise(x, self.weight, self.bias, *self.geometry, name, [], algorithm)

    def _sum(self, activation: str | None) -> tuple:
        """What oneDNN's sum of a convolution and an addend takes after these two."""
        return self.weight, self.bias, *self.geometry, "add", 1.0, activation, [], None

    def _output_shape(self, x: Tensor) -> tuple[int, ...]:
        axes = zip(x.shape[2:], self.axes, strict=True)
        sizes = ((n + 2 * padding - dilation * (k - 1) - 1) // stride + 1 for n, (k, padding, stride, dilation) in axes)
        return len(x), len(self.bias), *sizes
