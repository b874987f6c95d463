"""SSD-style pyramid: every level is projected on its own, nothing is fused.

After Liu et al., SSD: Single Shot MultiBox Detector, ECCV 2016. The baseline that an independent hierarchy improves on.
"""

from typing import Any

import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from .layers import conv, strided_conv
from .neck import NECK_REGISTRY, Neck


@NECK_REGISTRY.register()
class SSD(Neck):
    """A 1×1 projection per level. Extra top levels: ReLU and a 3×3 stride-2 convolution of the level below.

    Args:
        input_shapes: channels and stride of each bottom-up level, lowest level first.
        out_channels: channels of every output level.
        num_levels: output levels, 0 for as many as inputs.
        norm: a name that `detectron2.layers.get_norm` knows, "" for none.
    """

    @configurable
    def __init__(
        self, input_shapes: dict[str, ShapeSpec], out_channels: int, num_levels: int = 0, norm: str = ""
    ) -> None:
        super().__init__(input_shapes, out_channels, num_levels)
        self.project = nn.ModuleList(conv(channels, out_channels, norm=norm) for channels in self.in_channels)
        self.extra = nn.ModuleList(strided_conv(out_channels, out_channels, norm) for _ in range(self.num_extra_levels))

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shapes: dict[str, ShapeSpec]) -> dict[str, Any]:
        return {**super().from_config(cfg, input_shapes), "norm": cfg.MODEL.NECK.NORM}

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        pyramid = [project(x) for x, project in zip(self.inputs(features), self.project, strict=True)]
        for extra in self.extra:
            pyramid.append(extra(F.relu(pyramid[-1])))
        return dict(zip(self.names, pyramid, strict=True))
