"""PANet: a bottom-up path after FPN, so that what low levels see reaches the top in a few steps.

Liu et al., Path Aggregation Network for Instance Segmentation, CVPR 2018, section 3.1.
"""

from typing import Any

import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from .errors import choose
from .fpn import FPN
from .layers import (
    UPSAMPLE,
    Downsample,
    MakeExtraLevels,
    Norm,
    Upsample,
    chosen_extra_levels,
    conv,
    crop,
    nearest,
    pooled_levels,
    size_of,
)
from .neck import NECK_REGISTRY, Neck
from .sa_layers import ESD1, ESD2


def strided_conv_relu(in_channels: int, out_channels: int, norm: Norm = "") -> nn.Module:
    """Make a 3×3 convolution with stride 2 and ReLU; `norm` as for `necks.layers.conv`."""
    return conv(in_channels, out_channels, 3, norm, stride=2, activation=F.relu)


DOWNSAMPLE: dict[str, Downsample] = {"conv": strided_conv_relu, "esd1": ESD1, "esd2": ESD2}


@NECK_REGISTRY.register()
class PANet(Neck):
    """FPN, then N_lowest = P_lowest and N_{i+1} = ReLU(conv(P_{i+1} + ReLU(down(N_i)))).

    Args:
        input_shapes: channels and stride of each bottom-up level, lowest level first.
        out_channels: channels of every output level.
        num_levels: output levels, 0 for as many as inputs.
        norm: a name that `detectron2.layers.get_norm` knows, "" for none.
        upsample: brings a level of the top-down path to the size of the one below it.
        downsample: makes the stride-2 layer of the bottom-up path from (in_channels, out_channels, norm).
        extra_levels: makes the levels above the inputs, one of `necks.layers.EXTRA_LEVELS`.
    """

    @configurable
    def __init__(
        self,
        input_shapes: dict[str, ShapeSpec],
        out_channels: int,
        num_levels: int = 0,
        norm: str = "",
        upsample: Upsample = nearest,
        downsample: Downsample = strided_conv_relu,
        extra_levels: MakeExtraLevels = pooled_levels,
    ) -> None:
        super().__init__(input_shapes, out_channels, num_levels)
        self.fpn = FPN(input_shapes, out_channels, norm=norm, upsample=upsample)
        steps = range(len(input_shapes) - 1)
        self.down = nn.ModuleList(downsample(out_channels, out_channels, norm) for _ in steps)
        self.output = nn.ModuleList(conv(out_channels, out_channels, 3, norm, activation=F.relu) for _ in steps)
        self.extra = extra_levels(self.num_extra_levels, self.in_channels[-1], out_channels, norm)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shapes: dict[str, ShapeSpec]) -> dict[str, Any]:
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
            path.append(output(p + crop(down(path[-1]), size_of(p))))
        return dict(zip(self.names, self.extra(path, features[self.in_features[-1]]), strict=True))
