"""Layers and paths that several necks share, and the names by which configs choose among them."""

from collections.abc import Callable, Iterable, Sequence

import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import Conv2d, get_norm
from fvcore.nn import weight_init
from torch import Tensor, nn

from .errors import choose

Size = tuple[int, int]
Norm = str | Callable[[int], nn.Module | None]
"""A name that `detectron2.layers.get_norm` knows, "" for none, or what makes a layer from the number of channels."""
Upsample = Callable[[Tensor, Size], Tensor]
"""Resizes (B, C, H, W) to a (height, width)."""
Downsample = Callable[[int, int, Norm], nn.Module]
"""Makes a layer of stride 2 from (in_channels, out_channels, norm)."""
MakeExtraLevels = Callable[[int, int, int, Norm], "ExtraLevels"]
"""Makes that many top levels of (count, channels of the highest input, channels of the pyramid, norm)."""


def norm_layer(norm: Norm, channels: int) -> nn.Module | None:
    """`detectron2.layers.get_norm` with a clear answer.

    Args:
        norm: see `Norm`.
        channels: of the map that the layer normalizes.

    Returns:
        The layer, None for the norm "".

    Raises:
        ValueError: no such norm, or one that does not take so many channels.
    """
    if callable(norm):
        return norm(channels)
    try:
        return get_norm(norm, channels)
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"norm is {norm!r}, for {channels} channels; it must be one of BN, SyncBN, FrozenBN, LN, GN (for a "
            'multiple of 32 channels) or "" for none'
        ) from error


def conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int = 1,
    norm: Norm = "",
    stride: int = 1,
    groups: int = 1,
    activation: Callable[[Tensor], Tensor] | None = None,
) -> Conv2d:
    """Make a convolution with same padding and detectron2's initialization for pyramids; a bias only without norm.

    Args:
        in_channels: channels that it reads.
        out_channels: channels that it makes.
        kernel_size: height and width of the kernel, odd.
        norm: see `Norm`; follows the convolution.
        stride: of the convolution.
        groups: of channels that do not mix; `in_channels` for a depthwise convolution.
        activation: follows the norm.
    """
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
    """Resize (B, C, H, W) to `size` (height, width), each pixel from the nearest one."""
    return F.interpolate(x, size=size, mode="nearest")


def bilinear(x: Tensor, size: Size) -> Tensor:
    """Resize (B, C, H, W) to `size` (height, width) by linear interpolation, without aligned corners."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def soft_nearest(x: Tensor, size: Size) -> Tensor:
    """Resize (B, C, H, W) to `size` (height, width) as `nearest` does, times the areas' ratio H·W / (height·width).

    The factor, a quarter for twice the size, softens what a coarse level does to a fine one when the two are added:
    each input pixel keeps its total. It is the soft nearest interpolation of Li, ECCV 2024.
    """
    height, width = size
    return nearest(x * (x.shape[-2] * x.shape[-1] / (height * width)), size)


def soft_bilinear(x: Tensor, size: Size) -> Tensor:
    """A quarter of `bilinear`: what the authors of soft nearest interpolation use in R-CNNs."""
    return bilinear(x, size) / 4


def crop(x: Tensor, size: Size) -> Tensor:
    """The upper left (height, width) `size` of (B, C, H, W): all of it, where the sizes of levels are rounded up."""
    return x[..., : size[0], : size[1]]


def top_down_path(
    maps: Sequence[Tensor], upsample: Upsample, merge: Iterable[Callable[[Tensor, Tensor], Tensor]]
) -> list[Tensor]:
    """T_highest = X_highest, then T_i = merge_i(X_i, upsample(T_{i+1})) down to the lowest level.

    Args:
        maps: X, (B, C, H_i, W_i) each, lowest level first.
        upsample: brings T_{i+1} to the size of X_i.
        merge: one for each level but the highest, lowest level first.

    Returns:
        T, lowest level first.
    """
    *lower, highest = maps
    path = [highest]
    for x, merge_level in reversed(list(zip(lower, merge, strict=True))):
        path.insert(0, merge_level(x, upsample(path[0], size_of(x))))
    return path


def strided_conv(in_channels: int, out_channels: int, norm: Norm = "") -> nn.Module:
    """Make a 3×3 convolution with stride 2; `norm` as for `conv`."""
    return conv(in_channels, out_channels, 3, norm, stride=2)


class ExtraLevels(nn.ModuleList):
    """Top levels that have no input, each made by one layer from the level below it.

    Args:
        layers: one for each level, lowest first.
        from_input: the first layer reads the highest input of the neck and not the highest output.
    """

    def __init__(self, layers: Iterable[nn.Module], from_input: bool = False) -> None:
        super().__init__(layers)
        self.from_input = from_input

    def forward(self, maps: list[Tensor], highest_input: Tensor) -> list[Tensor]:
        """Append the extra levels to a pyramid.

        Args:
            maps: (B, C, H, W) each, lowest level first.
            highest_input: the bottom-up map that the last of them comes from.
        """
        maps = list(maps)
        below = highest_input if self.from_input else maps[-1]
        for layer in self:
            below = layer(below)
            maps.append(below)
        return maps


class EverySecondPixel(nn.Module):
    """(B, C, H, W) to the pixels of even row and column: (B, C, ceil(H / 2), ceil(W / 2))."""

    def forward(self, x: Tensor) -> Tensor:
        # Pooling with stride 2 would give the same, but divides a size and so ties an exported graph to its parity.
        return x[..., ::2, ::2].clone()


def pooled_levels(count: int, in_channels: int, channels: int, norm: Norm = "") -> ExtraLevels:
    """Make levels of every second pixel of the level below (FPN: Lin et al., CVPR 2017, footnote 2)."""
    return ExtraLevels(EverySecondPixel() for _ in range(count))


def convolved_levels(count: int, in_channels: int, channels: int, norm: Norm = "") -> ExtraLevels:
    """Make levels as RetinaNet does (Lin et al., ICCV 2017, section 4).

    P6 is a 3×3 stride-2 convolution of C5, and P7 one of ReLU(P6).

    Args:
        count: how many levels.
        in_channels: channels of the highest input, C5.
        channels: channels of the pyramid.
        norm: see `Norm`.
    """
    return _convolutions(in_channels, count, channels, norm, from_input=True)


def levels_convolved_from_output(count: int, in_channels: int, channels: int, norm: Norm = "") -> ExtraLevels:
    """Make levels as `convolved_levels` does, but the first from the highest output, P5, as later detectors do."""
    return _convolutions(channels, count, channels, norm, from_input=False)


def _convolutions(first_channels: int, count: int, channels: int, norm: Norm, from_input: bool) -> ExtraLevels:
    read = [first_channels, *[channels] * count][:count]
    layers = [strided_conv(c, channels, norm) for c in read]
    return ExtraLevels((nn.Sequential(nn.ReLU(), x) if i else x for i, x in enumerate(layers)), from_input)


UPSAMPLE: dict[str, Upsample] = {
    "nearest": nearest,
    "bilinear": bilinear,
    "sni": soft_nearest,
    "soft_bilinear": soft_bilinear,
}
EXTRA_LEVELS: dict[str, MakeExtraLevels] = {
    "pool": pooled_levels,
    "conv": convolved_levels,
    "conv_from_output": levels_convolved_from_output,
}


def chosen_extra_levels(cfg: CfgNode) -> MakeExtraLevels:
    """What `MODEL.NECK.EXTRA_LEVELS` names."""
    return choose("MODEL.NECK.EXTRA_LEVELS", cfg.MODEL.NECK.EXTRA_LEVELS, EXTRA_LEVELS)
