"""Layers of secondary features alignment: SNI, ESD and GSConvE.

Li, Rethinking Features-Fused-Pyramid-Neck for Object Detection, ECCV 2024.
GSConv: Li et al., Slim-neck by GSConv, 2022.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import Downsample, Norm, norm_layer, soft_nearest, strided_conv


class ConvNormSiLU(nn.Module):
    """Convolution with same padding, norm, SiLU.

    Args:
        in_channels: channels that it reads.
        out_channels: channels that it makes.
        kernel_size: height and width of the kernel, odd.
        stride: of the convolution.
        norm: see `necks.layers.Norm`; a bias takes its place where there is none.
        groups: of channels that do not mix.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, norm: Norm = "BN", groups: int = 1
    ) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=not norm)
        self.bn = norm_layer(norm, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return F.silu(x if self.bn is None else self.bn(x))


class SNI(nn.Module):
    """Soft nearest interpolation by a whole factor: (B, C, H, W) to (B, C, H·s, W·s)."""

    def __init__(self, scale_factor: int) -> None:
        super().__init__()
        self.scale_factor = scale_factor

    def forward(self, x: Tensor) -> Tensor:
        return soft_nearest(x, (x.shape[-2] * self.scale_factor, x.shape[-1] * self.scale_factor))


class _ESD(nn.Module):
    """The three branches of extended-window downsampling: global (mean), local (maximum), dense (convolution).

    Args:
        in_channels: channels that all of them read.
        out_channels: channels of the dense branch.
        norm: of the dense branch, see `necks.layers.Norm`.
    """

    def __init__(self, in_channels: int, out_channels: int, norm: Norm = "BN") -> None:
        super().__init__()
        self.dense = ConvNormSiLU(in_channels, out_channels, 3, stride=2, norm=norm)

    def branches(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # An odd size rounds up as for the 3×3 convolution, the last row or column counting twice.
        even = F.pad(x, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2), mode="replicate")
        mean = F.avg_pool2d(even, kernel_size=4, stride=2, padding=1)
        return mean, F.max_pool2d(even, kernel_size=4, stride=2, padding=1), self.dense(x)


class ESD1(_ESD):
    """Extended-window downsampling by 2: global + local + dense; concat(global, local) + dense when channels double."""

    def __init__(self, in_channels: int, out_channels: int, norm: Norm = "BN") -> None:
        super().__init__(in_channels, out_channels, norm)
        if out_channels not in (in_channels, 2 * in_channels):
            raise ValueError(
                f"out_channels is {out_channels}; ESD1 keeps or doubles the channels it reads, so that it must be "
                f"{in_channels} or {2 * in_channels}; ESD2 takes any number"
            )
        self.doubles = out_channels == 2 * in_channels

    def forward(self, x: Tensor) -> Tensor:
        mean, maximum, dense = self.branches(x)
        return torch.cat((mean, maximum), dim=1) + dense if self.doubles else mean + maximum + dense


class ESD2(_ESD):
    """Extended-window downsampling by 2 to any number of channels: 1×1 convolution of concat(global, local, dense)."""

    def __init__(self, in_channels: int, out_channels: int, norm: Norm = "BN") -> None:
        super().__init__(in_channels, out_channels, norm)
        self.fuse = nn.Conv2d(2 * in_channels + out_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fuse(torch.cat(self.branches(x), dim=1))


# A tracer keeps it as one call: what it does depends on the device and the layout of the map.
@torch.fx.wrap
def shuffle_halves(x: Tensor) -> Tensor:
    """Interleave the two halves of the channels: 0, C/2, 1, C/2 + 1, …"""
    if x.device.type == "cpu":
        return F.channel_shuffle(x, 2)
    # Elsewhere PyTorch's own gives up channels_last. This keeps the layout.
    dim = 3 if x.is_contiguous(memory_format=torch.channels_last) else 1
    return x.movedim(1, dim).unflatten(dim, (2, -1)).transpose(dim, dim + 1).flatten(dim, dim + 1).movedim(dim, 1)


def _split(out_channels: int, parts: int) -> int:
    if out_channels % parts:
        raise ValueError(f"out_channels is {out_channels}; it must be a multiple of {parts}, the parts of a GSConv")
    return out_channels // parts


class GSConv(nn.Module):
    """A dense k×k convolution to half the channels, a depthwise 5×5 convolution of that, concatenated and shuffled.

    Args:
        in_channels: channels that it reads.
        out_channels: channels that it makes, even.
        kernel_size: of the dense convolution, odd.
        stride: of the dense convolution.
        norm: see `necks.layers.Norm`.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 1, stride: int = 1, norm: Norm = "BN"
    ) -> None:
        super().__init__()
        half = _split(out_channels, 2)
        self.primary = ConvNormSiLU(in_channels, half, kernel_size, stride, norm)
        self.auxiliary = self._auxiliary(half, norm)

    def _auxiliary(self, channels: int, norm: Norm) -> nn.Module:
        return ConvNormSiLU(channels, channels, 5, norm=norm, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        primary = self.primary(x)
        return shuffle_halves(torch.cat((primary, self.auxiliary(primary)), dim=1))


class GSConvE1(GSConv):
    """GSConv whose auxiliary branch is a dense and a depthwise 3×3 convolution without norm, then GELU."""

    def _auxiliary(self, channels: int, norm: Norm) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
            nn.GELU(),
        )


class GSConvE2(nn.Module):
    """A dense convolution to a quarter of the channels, depthwise 9×9, 13×13, 17×17 of it, concatenated, shuffled.

    Args: as for `GSConv`, but `out_channels` a multiple of four.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 1, stride: int = 1, norm: Norm = "BN"
    ) -> None:
        super().__init__()
        quarter = _split(out_channels, 4)
        self.primary = ConvNormSiLU(in_channels, quarter, kernel_size, stride, norm)
        self.auxiliary = nn.ModuleList(
            ConvNormSiLU(quarter, quarter, size, norm=norm, groups=quarter) for size in (9, 13, 17)
        )

    def forward(self, x: Tensor) -> Tensor:
        primary = self.primary(x)
        return shuffle_halves(torch.cat((primary, *(branch(primary) for branch in self.auxiliary)), dim=1))


DOWNSAMPLE: dict[str, Downsample] = {"conv": strided_conv, "esd1": ESD1, "esd2": ESD2}
