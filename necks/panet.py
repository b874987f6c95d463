"""PANet: a bottom-up path after FPN, so that what low levels see reaches the top in a few steps.

Liu et al., Path Aggregation Network for Instance Segmentation, CVPR 2018, section 3.1.
"""

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from .fpn import FPN
from .layers import (
    DOWNSAMPLE,
    UPSAMPLE,
    Downsample,
    MakeExtraLevels,
    Upsample,
    chosen_extra_levels,
    conv,
    nearest,
    pooled_levels,
    size_of,
    strided_conv,
)
from .neck import NECK_REGISTRY, Neck, choose


@NECK_REGISTRY.register()
class PANet(Neck):
    """FPN, then N_lowest = P_lowest and N_{i+1} = conv(P_{i+1} + down(N_i)).

    Args:
        input_shapes: channels and stride of each bottom-up level, lowest level first.
        out_channels: channels of every output level.
        num_levels: output levels, 0 for as many as inputs.
        norm: a name that `detectron2.layers.get_norm` knows, "" for none.
        upsample: brings a level of the top-down path to the size of the one below it.
        downsample: makes the stride-2 layer of the bottom-up path from (in_channels, out_channels, norm).
        extra_levels: makes the levels above the inputs, `pooled_levels` or `convolved_levels` of `necks.layers`.
    """

    @configurable
    def __init__(
        self,
        input_shapes: dict[str, ShapeSpec],
        out_channels: int,
        num_levels: int = 0,
        norm: str = "",
        upsample: Upsample = nearest,
        downsample: Downsample = strided_conv,
        extra_levels: MakeExtraLevels = pooled_levels,
    ):
        super().__init__(input_shapes, out_channels, num_levels)
        self.fpn = FPN(input_shapes, out_channels, norm=norm, upsample=upsample)
        steps = range(len(input_shapes) - 1)
        self.down = nn.ModuleList(downsample(out_channels, out_channels, norm) for _ in steps)
        self.output = nn.ModuleList(conv(out_channels, out_channels, 3, norm) for _ in steps)
        self.extra = extra_levels(self.num_extra_levels, out_channels, norm)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shapes: dict[str, ShapeSpec]) -> dict:
        panet = cfg.MODEL.NECK.PANET
        return {
            **super().from_config(cfg, input_shapes),
            "norm": cfg.MODEL.NECK.NORM,
            "upsample": choose("MODEL.NECK.PANET.UPSAMPLE", panet.UPSAMPLE, UPSAMPLE),
            "downsample": choose("MODEL.NECK.PANET.DOWNSAMPLE", panet.DOWNSAMPLE, DOWNSAMPLE),
            "extra_levels": chosen_extra_levels(cfg),
        }

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        lowest, *rest = self.fpn(features).values()
        path = [lowest]
        for p, down, output in zip(rest, self.down, self.output, strict=True):
            path.append(output(p + nearest(down(path[-1]), size_of(p))))
        return dict(zip(self.names, self.extra(path), strict=True))
