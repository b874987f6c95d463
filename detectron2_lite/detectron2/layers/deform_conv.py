"""Deformable convolutions over torchvision.

Dai et al., Deformable Convolutional Networks, ICCV 2017; Zhu et al., Deformable ConvNets v2, CVPR 2019.
"""

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import _pair
from torchvision.ops import deform_conv2d


class _DeformConvBase(nn.Module):
    """Weights and arguments that both versions share."""

    def __init__(self, in_channels, out_channels, kernel_size, groups, deformable_groups, norm, activation) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = _pair(kernel_size)
        self.groups = groups
        self.deformable_groups = deformable_groups
        self.norm = norm
        self.activation = activation
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *self.kernel_size))
        nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")

    def _conv(self, x: Tensor, offset: Tensor, mask: Tensor | None) -> Tensor:
        x = deform_conv2d(x, offset, self.weight, self.bias, self.stride, self.padding, self.dilation, mask)
        if self.norm is not None:
            x = self.norm(x)
        if self.activation is not None:
            x = self.activation(x)
        return x

    def extra_repr(self) -> str:
        return (
            f"in_channels={self.in_channels}, out_channels={self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding}, dilation={self.dilation}, groups={self.groups}, "
            f"deformable_groups={self.deformable_groups}, bias={self.bias is not None}"
        )


class DeformConv(_DeformConvBase):
    """Deformable convolution (version 1).

    Args:
        deformable_groups: number of channel groups that have offsets of their own.
        bias: must be False.
        norm: normalization layer applied to the output.
        activation: callable applied last.
        others: as for `torch.nn.Conv2d`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        deformable_groups: int = 1,
        bias: bool = False,
        norm: nn.Module | None = None,
        activation=None,
    ) -> None:
        assert not bias
        assert in_channels % groups == 0, f"in_channels {in_channels} cannot be divisible by groups {groups}"
        assert out_channels % groups == 0, f"out_channels {out_channels} cannot be divisible by groups {groups}"
        super().__init__(in_channels, out_channels, kernel_size, groups, deformable_groups, norm, activation)
        self.stride = _pair(stride)
        self.padding = _pair(padding)
        self.dilation = _pair(dilation)
        self.bias = None

    def forward(self, x: Tensor, offset: Tensor) -> Tensor:
        """
        Args:
            x: (B, in_channels, H, W).
            offset: (B, deformable_groups * kh * kw * 2, H_out, W_out), (dy, dx) of each kernel point in pixels.
        """
        return self._conv(x, offset, None)


class ModulatedDeformConv(_DeformConvBase):
    """Deformable convolution whose kernel points are also weighted (version 2).

    Args:
        deformable_groups: number of channel groups that have offsets and weights of their own.
        norm: normalization layer applied to the output.
        activation: callable applied last.
        others: as for `torch.nn.Conv2d`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        deformable_groups: int = 1,
        bias: bool = True,
        norm: nn.Module | None = None,
        activation=None,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, groups, deformable_groups, norm, activation)
        self.stride = stride
        self.padding = padding
        self.dilation = dilation
        self.with_bias = bias
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        """
        Args:
            x: (B, in_channels, H, W).
            offset: (B, deformable_groups * kh * kw * 2, H_out, W_out), (dy, dx) of each kernel point in pixels.
            mask: (B, deformable_groups * kh * kw, H_out, W_out), weight of each kernel point, usually in [0, 1].
        """
        return self._conv(x, offset, mask)
