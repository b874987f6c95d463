"""SA neck: levels filtered on their own (IHP), and fused, if at all, through layers that keep them aligned.

Li, Rethinking Features-Fused-Pyramid-Neck for Object Detection, ECCV 2024.
"""

from collections.abc import Callable

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from .layers import DOWNSAMPLE, UPSAMPLE, Downsample, Upsample, nearest, size_of
from .neck import NECK_REGISTRY, Neck, check_at_least, choose
from .sa_layers import ESD1, ConvNormSiLU, GSConv, GSConvE1, GSConvE2, soft_nearest

Convolution = Callable[..., nn.Module]
"""Makes a layer from (in_channels, out_channels, kernel_size, norm=…)."""

CONV: dict[str, Convolution] = {"conv": ConvNormSiLU, "gsconv": GSConv, "gsconve1": GSConvE1, "gsconve2": GSConvE2}

FUSION = {"none": (False, False), "top_down": (True, False), "bidirectional": (True, True)}
"""Whether a topology has a top-down path, and a bottom-up path after it."""


class Bottleneck(nn.Module):
    """x + conv3×3(conv1×1(x)), half the channels in between."""

    def __init__(self, channels: int, norm: str, convolution: Convolution):
        super().__init__()
        check_at_least("MODEL.NECK.OUT_CHANNELS", channels, 2)
        self.reduce = ConvNormSiLU(channels, channels // 2, 1, norm=norm)
        self.filter = convolution(channels // 2, channels, 3, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.filter(self.reduce(x))


@NECK_REGISTRY.register()
class SA(Neck):
    """Secondary features alignment.

    Every level is filtered on its own: a 3×3 convolution, then bottlenecks. This is IHP, the independent hierarchy.
    With a top-down path T_i = conv(Y_i + up(T_{i+1})), with a bottom-up path after it N_{i+1} = conv(T_{i+1} +
    down(N_i)). Extra top levels downsample the filtered level below and take part in the fusion.

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
        num_bottlenecks: residual bottlenecks per level, which need 2 channels or more.
    """

    @configurable
    def __init__(
        self,
        input_shapes: dict[str, ShapeSpec],
        out_channels: int,
        num_levels: int = 0,
        norm: str = "BN",
        top_down: bool = True,
        bottom_up: bool = True,
        upsample: Upsample = soft_nearest,
        downsample: Downsample = ESD1,
        convolution: Convolution = GSConvE1,
        num_bottlenecks: int = 1,
    ):
        super().__init__(input_shapes, out_channels, num_levels)
        check_at_least("MODEL.NECK.SA.NUM_BOTTLENECKS", num_bottlenecks, 0)
        self.upsample = upsample

        def down_layers(count: int) -> nn.ModuleList:
            return nn.ModuleList(downsample(out_channels, out_channels, norm) for _ in range(count))

        def fuse_layers(count: int) -> nn.ModuleList:
            return nn.ModuleList(convolution(out_channels, out_channels, 3, norm=norm) for _ in range(count))

        self.filter = nn.ModuleList(
            nn.Sequential(
                convolution(channels, out_channels, 3, norm=norm),
                *(Bottleneck(out_channels, norm, convolution) for _ in range(num_bottlenecks)),
            )
            for channels in self.in_channels
        )
        self.extra = down_layers(self.num_extra_levels)
        steps = len(self.levels) - 1
        self.top_down = fuse_layers(steps if top_down else 0)
        self.down = down_layers(steps if bottom_up else 0)
        self.bottom_up = fuse_layers(steps if bottom_up else 0)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shapes: dict[str, ShapeSpec]) -> dict:
        sa = cfg.MODEL.NECK.SA
        top_down, bottom_up = choose("MODEL.NECK.SA.FUSION", sa.FUSION, FUSION)
        return {
            **super().from_config(cfg, input_shapes),
            "norm": cfg.MODEL.NECK.NORM,
            "top_down": top_down,
            "bottom_up": bottom_up,
            "upsample": choose("MODEL.NECK.SA.UPSAMPLE", sa.UPSAMPLE, UPSAMPLE),
            "downsample": choose("MODEL.NECK.SA.DOWNSAMPLE", sa.DOWNSAMPLE, DOWNSAMPLE),
            "convolution": choose("MODEL.NECK.SA.CONV", sa.CONV, CONV),
            "num_bottlenecks": sa.NUM_BOTTLENECKS,
        }

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        maps = [level(x) for x, level in zip(self.inputs(features), self.filter, strict=True)]
        for extra in self.extra:
            maps.append(extra(maps[-1]))
        # A path that the topology lacks has no layers, and the loop over them leaves the maps as they are.
        for i in reversed(range(len(self.top_down))):
            maps[i] = self.top_down[i](maps[i] + self.upsample(maps[i + 1], size_of(maps[i])))
        for i, (down, fuse) in enumerate(zip(self.down, self.bottom_up, strict=True), start=1):
            maps[i] = fuse(maps[i] + nearest(down(maps[i - 1]), size_of(maps[i])))
        return dict(zip(self.names, maps, strict=True))
