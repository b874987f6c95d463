"""SA neck: levels filtered on their own (IHP), and fused, if at all, through layers that keep them aligned.

Li, Rethinking Features-Fused-Pyramid-Neck for Object Detection, ECCV 2024.
C3: the cross-stage partial block of Ultralytics' YOLOv5 (Jocher, 2020).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from .errors import check_at_least, choose
from .layers import UPSAMPLE, Downsample, Norm, Upsample, crop, size_of, soft_nearest, top_down_path
from .neck import NECK_REGISTRY, Neck
from .sa_layers import DOWNSAMPLE, ConvNormSiLU, GSConv, GSConvE1, GSConvE2

Convolution = Callable[..., nn.Module]
"""Makes a layer from (in_channels, out_channels, kernel_size, norm=…)."""

CONV: dict[str, Convolution] = {"conv": ConvNormSiLU, "gsconv": GSConv, "gsconve1": GSConvE1, "gsconve2": GSConvE2}

FUSION = {"none": (False, False), "top_down": (True, False), "bidirectional": (True, True)}
"""Whether a topology has a top-down path, and a bottom-up path after it."""


class C3(nn.Module):
    """conv1×1(concat(bottlenecks(conv1×1(x)), conv1×1(x))), half the channels in each branch.

    A bottleneck is a 1×1 and a 3×3 convolution, here without a shortcut around them.

    Args:
        in_channels: channels that it reads.
        out_channels: channels that it makes, 2 or more.
        depth: how many bottlenecks.
        norm: see `necks.layers.Norm`.
    """

    def __init__(self, in_channels: int, out_channels: int, depth: int, norm: Norm = "BN") -> None:
        super().__init__()
        check_at_least("out_channels", out_channels, 2)
        half = out_channels // 2
        self.main = ConvNormSiLU(in_channels, half, 1, norm=norm)
        self.side = ConvNormSiLU(in_channels, half, 1, norm=norm)
        self.bottlenecks = nn.Sequential(
            *(ConvNormSiLU(half, half, kernel_size, norm=norm) for _ in range(depth) for kernel_size in (1, 3))
        )
        self.join = ConvNormSiLU(2 * half, out_channels, 1, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.join(torch.cat((self.bottlenecks(self.main(x)), self.side(x)), dim=1))


class ConcatC3(nn.Module):
    """C3(concat(a, b)) of two maps of `channels` channels."""

    def __init__(self, channels: int, norm: Norm, convolution: Convolution) -> None:
        super().__init__()
        self.block = C3(2 * channels, channels, 1, norm)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.block(torch.cat((a, b), dim=1))


class Bottleneck(nn.Module):
    """x + conv3×3(conv1×1(x)), half the channels in between."""

    def __init__(self, channels: int, norm: Norm, convolution: Convolution) -> None:
        super().__init__()
        check_at_least("out_channels", channels, 2)
        self.reduce = ConvNormSiLU(channels, channels // 2, 1, norm=norm)
        self.filter = convolution(channels // 2, channels, 3, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.filter(self.reduce(x))


class SumConv(nn.Module):
    """conv3×3(a + b) of two maps of `channels` channels."""

    def __init__(self, channels: int, norm: Norm, convolution: Convolution) -> None:
        super().__init__()
        self.filter = convolution(channels, channels, 3, norm=norm)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.filter(a + b)


class Assembly(NamedTuple):
    """How the parts of the neck are put together.

    Attributes:
        blocks: makes what follows the first convolution of a level, from (channels, depth, norm, convolution).
        merge: makes the module that fuses two maps, from (channels, norm, convolution).
        grows: whether each level is one deeper than the level below it.
    """

    blocks: Callable[[int, int, Norm, Convolution], nn.Module]
    merge: Callable[[int, Norm, Convolution], nn.Module]
    grows: bool


def _c3(channels: int, depth: int, norm: Norm, convolution: Convolution) -> nn.Module:
    return C3(channels, channels, depth, norm)


def _bottlenecks(channels: int, depth: int, norm: Norm, convolution: Convolution) -> nn.Module:
    return nn.Sequential(*(Bottleneck(channels, norm, convolution) for _ in range(depth)))


YOLO = Assembly(_c3, ConcatC3, grows=True)
"""What the author builds into YOLO-like detectors."""
SUM = Assembly(_bottlenecks, SumConv, grows=False)
"""An assembly of this project: residual bottlenecks, and sums in place of concatenations."""
ASSEMBLY = {"yolo": YOLO, "sum": SUM}


def strided_gsconve1(in_channels: int, out_channels: int, norm: Norm = "BN") -> nn.Module:
    """Make a 3×3 GSConvE-1 with stride 2."""
    return GSConvE1(in_channels, out_channels, 3, stride=2, norm=norm)


@NECK_REGISTRY.register()
class SA(Neck):
    """Secondary features alignment.

    Every level is filtered on its own: Y_i = blocks(conv3×3(X_i)). This is IHP, the independent hierarchy. With a
    top-down path T_i = merge(Y_i, up(T_{i+1})), with a bottom-up path after it N_{i+1} = merge(T_{i+1}, down(N_i)).
    Extra top levels downsample the filtered level below and take part in the fusion.

    The author states that depth grows with the level, not by how much; one more bottleneck per level is this project's
    reading.

    Args:
        input_shapes: channels and stride of each bottom-up level, lowest level first.
        out_channels: channels of every output level.
        num_levels: output levels, 0 for as many as inputs.
        norm: a name that `detectron2.layers.get_norm` knows, "" for none.
        top_down: fuse from high to low levels.
        bottom_up: fuse from low to high levels, after `top_down` if both are asked for.
        upsample: brings a level of the top-down path to the size of the one below it.
        downsample: makes a stride-2 layer from (in_channels, out_channels, norm).
        convolution: makes a k×k layer from (in_channels, out_channels, kernel_size, norm=…).
        num_bottlenecks: bottlenecks in the blocks of the lowest level, 0 or more.
        assembly: what the blocks and the fusion are, `YOLO` or `SUM`.

    Raises:
        ValueError: channels that the layers cannot split evenly, or a negative number of bottlenecks.
    """

    @configurable
    def __init__(
        self,
        input_shapes: dict[str, ShapeSpec],
        out_channels: int,
        num_levels: int = 0,
        norm: Norm = "BN",
        top_down: bool = True,
        bottom_up: bool = True,
        upsample: Upsample = soft_nearest,
        downsample: Downsample = strided_gsconve1,
        convolution: Convolution = GSConvE1,
        num_bottlenecks: int = 1,
        assembly: Assembly = YOLO,
    ) -> None:
        super().__init__(input_shapes, out_channels, num_levels)
        check_at_least("num_bottlenecks", num_bottlenecks, 0)
        self.upsample = upsample

        def level(in_channels: int, depth: int) -> nn.Module:
            first = convolution(in_channels, out_channels, 3, norm=norm)
            return nn.Sequential(first, assembly.blocks(out_channels, depth, norm, convolution))

        def down_layers(count: int) -> nn.ModuleList:
            return nn.ModuleList(downsample(out_channels, out_channels, norm) for _ in range(count))

        def merges(count: int) -> nn.ModuleList:
            return nn.ModuleList(assembly.merge(out_channels, norm, convolution) for _ in range(count))

        self.filter = nn.ModuleList(
            level(channels, num_bottlenecks + (i if assembly.grows else 0))
            for i, channels in enumerate(self.in_channels)
        )
        self.extra = down_layers(self.num_extra_levels)
        steps = len(self.levels) - 1
        self.top_down = merges(steps) if top_down else None
        self.down = down_layers(steps if bottom_up else 0)
        self.bottom_up = merges(steps if bottom_up else 0)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shapes: dict[str, ShapeSpec]) -> dict[str, Any]:
        sa = cfg.MODEL.NECK.SA
        top_down, bottom_up = choose("MODEL.NECK.SA.FUSION", sa.FUSION, FUSION)
        downsample = {"gsconve1": strided_gsconve1, **DOWNSAMPLE}
        return {
            **super().from_config(cfg, input_shapes),
            "norm": cfg.MODEL.NECK.NORM,
            "top_down": top_down,
            "bottom_up": bottom_up,
            "upsample": choose("MODEL.NECK.SA.UPSAMPLE", sa.UPSAMPLE, UPSAMPLE),
            "downsample": choose("MODEL.NECK.SA.DOWNSAMPLE", sa.DOWNSAMPLE, downsample),
            "convolution": choose("MODEL.NECK.SA.CONV", sa.CONV, CONV),
            "num_bottlenecks": sa.NUM_BOTTLENECKS,
            "assembly": choose("MODEL.NECK.SA.ASSEMBLY", sa.ASSEMBLY, ASSEMBLY),
        }

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        maps = [level(x) for x, level in zip(self.inputs(features), self.filter, strict=True)]
        for extra in self.extra:
            maps.append(extra(maps[-1]))
        if self.top_down is not None:
            maps = top_down_path(maps, self.upsample, self.top_down)
        # A bottom-up path that the topology lacks has no layers, and the loop over them leaves the maps as they are.
        for i, (down, merge) in enumerate(zip(self.down, self.bottom_up, strict=True), start=1):
            maps[i] = merge(maps[i], crop(down(maps[i - 1]), size_of(maps[i])))
        return dict(zip(self.names, maps, strict=True))
