"""The blocks of ResNets.

He et al., Deep Residual Learning for Image Recognition, CVPR 2016.
"""

import fvcore.nn.weight_init as weight_init
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detectron2.layers import CNNBlockBase, Conv2d, DeformConv, ModulatedDeformConv, get_norm


def _conv_norm(in_channels: int, out_channels: int, kernel_size: int, norm: str, dilation: int = 1, **kwargs) -> Conv2d:
    """A convolution that keeps the size (but for its stride), with norm instead of bias."""
    return Conv2d(
        in_channels,
        out_channels,
        kernel_size=kernel_size,
        padding=dilation * (kernel_size // 2),
        dilation=dilation,
        bias=False,
        norm=get_norm(norm, out_channels),
        **kwargs,
    )


def _initialize(*layers: nn.Module | None) -> None:
    """Draw MSRA weights for the layers of a block, all of which are built already (a convolution draws too).

    The order in which blocks are built and layers drawn is part of the API: with it a seed gives the same network on
    any detectron2.
    """
    for layer in layers:
        if layer is not None:
            weight_init.c2_msra_fill(layer)


class BasicBlock(CNNBlockBase):
    """Two 3×3 convolutions and a shortcut, the block of ResNet-18 and 34.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: stride of the first convolution.
        norm: normalization after every convolution; a name for `get_norm`.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, norm: str = "BN") -> None:
        super().__init__(in_channels, out_channels, stride)
        self.shortcut = None
        if in_channels != out_channels:
            self.shortcut = _conv_norm(in_channels, out_channels, 1, norm, stride=stride)
        self.conv1 = _conv_norm(in_channels, out_channels, 3, norm, stride=stride)
        self.conv2 = _conv_norm(out_channels, out_channels, 3, norm)
        _initialize(self.conv1, self.conv2, self.shortcut)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu_(self.conv1(x))
        out = self.conv2(out)
        shortcut = self.shortcut(x) if self.shortcut is not None else x
        return F.relu_(out + shortcut)


class BottleneckBlock(CNNBlockBase):
    """1×1, 3×3 and 1×1 convolutions and a shortcut, the block of ResNet-50, 101 and 152.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        bottleneck_channels: channels of the 3×3 convolution.
        stride: stride of the block.
        num_groups: groups of the 3×3 convolution.
        norm: normalization after every convolution; a name for `get_norm`.
        stride_in_1x1: put the stride in the first 1×1 convolution (as the original models do) instead of the 3×3.
        dilation: dilation of the 3×3 convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bottleneck_channels: int,
        stride: int = 1,
        num_groups: int = 1,
        norm: str = "BN",
        stride_in_1x1: bool = False,
        dilation: int = 1,
    ) -> None:
        super().__init__(in_channels, out_channels, stride)
        self.shortcut = None
        if in_channels != out_channels:
            self.shortcut = _conv_norm(in_channels, out_channels, 1, norm, stride=stride)
        stride_1x1, stride_3x3 = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = _conv_norm(in_channels, bottleneck_channels, 1, norm, stride=stride_1x1)
        self.conv2 = _conv_norm(
            bottleneck_channels, bottleneck_channels, 3, norm, dilation, stride=stride_3x3, groups=num_groups
        )
        self.conv3 = _conv_norm(bottleneck_channels, out_channels, 1, norm)
        _initialize(self.conv1, self.conv2, self.conv3, self.shortcut)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu_(self.conv1(x))
        out = F.relu_(self.conv2(out))
        out = self.conv3(out)
        shortcut = self.shortcut(x) if self.shortcut is not None else x
        return F.relu_(out + shortcut)


class DeformBottleneckBlock(CNNBlockBase):
    """A bottleneck block whose 3×3 convolution is deformable.

    Args:
        deform_modulated: also weigh the kernel points (version 2).
        deform_num_groups: number of channel groups with offsets of their own.
        others: as for `BottleneckBlock`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bottleneck_channels: int,
        stride: int = 1,
        num_groups: int = 1,
        norm: str = "BN",
        stride_in_1x1: bool = False,
        dilation: int = 1,
        deform_modulated: bool = False,
        deform_num_groups: int = 1,
    ) -> None:
        super().__init__(in_channels, out_channels, stride)
        self.deform_modulated = deform_modulated
        self.shortcut = None
        if in_channels != out_channels:
            self.shortcut = _conv_norm(in_channels, out_channels, 1, norm, stride=stride)
        stride_1x1, stride_3x3 = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = _conv_norm(in_channels, bottleneck_channels, 1, norm, stride=stride_1x1)
        same_size = {"kernel_size": 3, "stride": stride_3x3, "padding": dilation, "dilation": dilation}
        values_per_point = 3 if deform_modulated else 2
        self.conv2_offset = Conv2d(bottleneck_channels, values_per_point * 9 * deform_num_groups, **same_size)
        self.conv2 = (ModulatedDeformConv if deform_modulated else DeformConv)(
            bottleneck_channels,
            bottleneck_channels,
            **same_size,
            bias=False,
            groups=num_groups,
            deformable_groups=deform_num_groups,
            norm=get_norm(norm, bottleneck_channels),
        )
        self.conv3 = _conv_norm(bottleneck_channels, out_channels, 1, norm)
        _initialize(self.conv1, self.conv2, self.conv3, self.shortcut)
        # Training starts from a regular grid.
        nn.init.constant_(self.conv2_offset.weight, 0)
        nn.init.constant_(self.conv2_offset.bias, 0)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu_(self.conv1(x))
        if self.deform_modulated:
            offset_y, offset_x, mask = torch.chunk(self.conv2_offset(out), 3, dim=1)
            out = self.conv2(out, torch.cat((offset_y, offset_x), dim=1), mask.sigmoid())
        else:
            out = self.conv2(out, self.conv2_offset(out))
        out = self.conv3(F.relu_(out))
        shortcut = self.shortcut(x) if self.shortcut is not None else x
        return F.relu_(out + shortcut)


class BasicStem(CNNBlockBase):
    """7×7 stride-2 convolution and 3×3 stride-2 max pool.

    Args:
        in_channels: channels of the image.
        out_channels: channels of the output.
        norm: normalization after the convolution; a name for `get_norm`.
    """

    def __init__(self, in_channels: int = 3, out_channels: int = 64, norm: str = "BN") -> None:
        super().__init__(in_channels, out_channels, 4)
        self.in_channels = in_channels
        self.conv1 = _conv_norm(in_channels, out_channels, 7, norm, stride=2)
        _initialize(self.conv1)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(F.relu_(self.conv1(x)), kernel_size=3, stride=2, padding=1)
