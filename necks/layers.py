"""Layers that several necks share, and the names by which configs choose among them."""

from collections.abc import Callable

import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import Conv2d
from fvcore.nn import weight_init
from torch import Tensor, nn

from .neck import choose, norm_layer
from .sa_layers import ESD1, ESD2, soft_nearest

Size = tuple[int, int]
Upsample = Callable[[Tensor, Size], Tensor]
"""Resizes (B, C, H, W) to a (height, width)."""
Downsample = Callable[[int, int, str], nn.Module]
"""Makes a layer of stride 2 from (in_channels, out_channels, norm)."""
MakeExtraLevels = Callable[[int, int, str], "ExtraLevels"]
"""Makes that many top levels of (count, channels, norm)."""


def conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int = 1,
    norm: str = "",
    stride: int = 1,
    groups: int = 1,
    activation: Callable[[Tensor], Tensor] | None = None,
) -> Conv2d:
    """Convolution with same padding, a bias only if there is no norm, and detectron2's initialisation for pyramids."""
    layer = Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        stride=stride,
        padding=kernel_size // 2,
        groups=groups,
        bias=not norm,
        norm=norm_layer(norm, out_channels),
        activation=activation,
    )
    weight_init.c2_xavier_fill(layer)
    return layer


def size_of(x: Tensor) -> Size:
    """(height, width) of a (B, C, H, W) map."""
    return x.shape[-2], x.shape[-1]


def nearest(x: Tensor, size: Size) -> Tensor:
    """Resize to `size`; a map that has it already is returned as it is."""
    return x if size_of(x) == size else F.interpolate(x, size=size, mode="nearest")


def bilinear(x: Tensor, size: Size) -> Tensor:
    """Resize to `size` without aligning corners; a map that has it already is returned as it is."""
    return x if size_of(x) == size else F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def strided_conv(in_channels: int, out_channels: int, norm: str = "") -> nn.Module:
    """3×3 convolution with stride 2."""
    return conv(in_channels, out_channels, 3, norm, stride=2)


class ExtraLevels(nn.ModuleList):
    """Top levels that have no input, each made by one layer from the level below it."""

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """(B, C, H, W) maps, lowest level first, and after them those of the extra levels."""
        maps = list(maps)
        for layer in self:
            maps.append(layer(maps[-1]))
        return maps


def pooled_levels(count: int, channels: int, norm: str = "") -> ExtraLevels:
    """Every second pixel of the level below (FPN: Lin et al., CVPR 2017, footnote 2)."""
    return ExtraLevels(nn.MaxPool2d(kernel_size=1, stride=2) for _ in range(count))


def convolved_levels(count: int, channels: int, norm: str = "") -> ExtraLevels:
    """3×3 stride-2 convolutions with ReLU in between, as RetinaNet makes P6 and P7 (Lin et al., ICCV 2017)."""
    convolutions = [strided_conv(channels, channels, norm) for _ in range(count)]
    return ExtraLevels(nn.Sequential(nn.ReLU(), layer) if i else layer for i, layer in enumerate(convolutions))


UPSAMPLE: dict[str, Upsample] = {"nearest": nearest, "bilinear": bilinear, "sni": soft_nearest}
DOWNSAMPLE: dict[str, Downsample] = {"conv": strided_conv, "esd1": ESD1, "esd2": ESD2}
EXTRA_LEVELS: dict[str, MakeExtraLevels] = {"pool": pooled_levels, "conv": convolved_levels}


def chosen_extra_levels(cfg: CfgNode) -> MakeExtraLevels:
    """What `MODEL.NECK.EXTRA_LEVELS` names."""
    return choose("MODEL.NECK.EXTRA_LEVELS", cfg.MODEL.NECK.EXTRA_LEVELS, EXTRA_LEVELS)
