"""NAS-FPN: the pyramid that architecture search found, seven merging cells stacked several times.

Ghiasi et al., NAS-FPN: Learning Scalable Feature Pyramid Architecture for Object Detection, CVPR 2019, figure 7 (f).
"""

from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from .errors import check_at_least
from .layers import Size, conv, size_of
from .neck import NECK_REGISTRY, Neck

NUM_LEVELS = 5
CELLS = ("gp_64_4", "sum_44_4", "sum_43_3", "sum_34_4", "gp_43_5", "gp_54_7", "gp_75_6")
"""Operation, levels read and level written; the published network works on levels 3 to 7."""
CELLS_READ = (3, 4, 5, 7, 7)
"""How many of the cells, from the first, it takes to make the lowest level, the two lowest, and so on."""


def max_pool(x: Tensor, factor: int) -> Tensor:
    """The maximum of each factor × factor cells of (B, C, H, W), at the border of those that exist; sizes round up."""
    # Padding in place of `ceil_mode`, because that one ties an exported graph to the parity of the size.
    height, width = size_of(x)
    return F.max_pool2d(F.pad(x, (0, -width % factor, 0, -height % factor), value=-torch.inf), factor)


def resample(x: Tensor, level: int, target: int, size: Size) -> Tensor:
    """Bring a map of one level to another, so that cell (i, j) of level k covers the same pixels in all of them.

    These are the pixels from (2**k · i, 2**k · j) on, 2**k along each side. A finer map comes from repeating cells, a
    coarser one from the maximum of those that fall into a cell; what lies outside the image counts for neither.

    Args:
        x: (B, C, H, W).
        level: of `x`.
        target: the level to bring it to.
        size: (height, width) of that level's map, which is the level below it halved and rounded up.
    """
    if level == target:
        return x
    if level > target:
        x = F.interpolate(x, scale_factor=2 ** (level - target), mode="nearest")
    else:
        x = max_pool(x, 2 ** (target - level))
    # A coarse cell at the border may cover more fine cells than there are.
    (height, width), (own_height, own_width) = size, size_of(x)
    return F.pad(x, (0, width - own_width, 0, height - own_height))


def gate(higher: Tensor, lower: Tensor) -> Tensor:
    """Global pooling cell: higher + lower · sigmoid(spatial maximum of higher), for (B, C, H, W) maps of one size."""
    return higher + lower * higher.amax(dim=(2, 3), keepdim=True).sigmoid()


class MergingCells(nn.Module):
    """One layer of NAS-FPN. Each cell merges maps, then applies ReLU, a 3×3 convolution and the norm.

    Args:
        channels: of every level.
        norm: a name that `detectron2.layers.get_norm` knows, "" for none.
        num_outputs: levels that somebody reads, from the lowest. Cells that only others need are left out, because
            their parameters would get no gradient.
    """

    def __init__(self, channels: int, norm: str = "", num_outputs: int = NUM_LEVELS) -> None:
        super().__init__()
        self.num_outputs = num_outputs
        cells = CELLS[: CELLS_READ[num_outputs - 1]]
        self.output = nn.ModuleDict({cell: conv(channels, channels, 3, norm) for cell in cells})

    def forward(self, pyramid: list[Tensor]) -> list[Tensor]:
        """Five (B, C, H, W) maps, finest first, to `num_outputs` of the same sizes; named 3 to 7 as in the paper."""
        p3, p4, p5, p6, p7 = pyramid
        sizes = {level: size_of(p) for level, p in enumerate(pyramid, start=3)}

        def at(target: int, level: int, x: Tensor) -> Tensor:
            return resample(x, level, target, sizes[target])

        def finish(cell: str, merged: Tensor) -> Tensor:
            return self.output[cell](F.relu(merged))

        inner4 = finish("gp_64_4", gate(at(4, 6, p6), p4))
        inner4 = finish("sum_44_4", inner4 + p4)
        out3 = finish("sum_43_3", at(3, 4, inner4) + p3)
        if self.num_outputs == 1:
            return [out3]
        out4 = finish("sum_34_4", at(4, 3, out3) + inner4)
        if self.num_outputs == 2:
            return [out3, out4]
        out5 = finish("gp_43_5", p5 + gate(at(5, 4, out4), at(5, 3, out3)))
        if self.num_outputs == 3:
            return [out3, out4, out5]
        out7 = finish("gp_54_7", p7 + gate(at(7, 5, out5), at(7, 4, inner4)))
        out6 = finish("gp_75_6", gate(at(6, 7, out7), at(6, 5, out5)))
        return [out3, out4, out5, out6, out7][: self.num_outputs]


@NECK_REGISTRY.register()
class NASFPN(Neck):
    """1×1 convolutions to equal channels, max-pooled extra levels, then merging cells, stacked.

    The cells join five levels: the lowest input takes the part of level 3 in the paper, and extra top levels are made
    until there are five. All of them work inside, also where fewer are returned: only the last layer then leaves out
    the cells that nobody reads.

    Args:
        input_shapes: channels and stride of one to five bottom-up levels, lowest level first.
        out_channels: channels of every output level.
        num_levels: output levels, at most five, 0 for as many as inputs.
        norm: a name that `detectron2.layers.get_norm` knows, "" for none. So deep a stack trains badly without one.
        stack: how many times the cells are repeated, each time with weights of their own.

    Raises:
        ValueError: more than five levels, or no layer at all.
    """

    @configurable
    def __init__(
        self,
        input_shapes: dict[str, ShapeSpec],
        out_channels: int,
        num_levels: int = 0,
        norm: str = "",
        stack: int = 7,
    ) -> None:
        super().__init__(input_shapes, out_channels, num_levels)
        if len(input_shapes) > NUM_LEVELS:
            raise ValueError(f"input_shapes has {len(input_shapes)} levels; NAS-FPN joins at most {NUM_LEVELS}")
        if num_levels > NUM_LEVELS:
            raise ValueError(f"num_levels is {num_levels}; NAS-FPN joins at most {NUM_LEVELS}")
        check_at_least("stack", stack, 1)
        self.lateral = nn.ModuleList(conv(channels, out_channels, norm=norm) for channels in self.in_channels)
        outputs = [NUM_LEVELS] * (stack - 1) + [len(self.levels)]
        self.layers = nn.Sequential(*(MergingCells(out_channels, norm, count) for count in outputs))

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shapes: dict[str, ShapeSpec]) -> dict[str, Any]:
        own = {"norm": cfg.MODEL.NECK.NORM, "stack": cfg.MODEL.NECK.NASFPN.STACK}
        return super().from_config(cfg, input_shapes) | own

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        pyramid = [lateral(x) for x, lateral in zip(self.inputs(features), self.lateral, strict=True)]
        for _ in range(NUM_LEVELS - len(pyramid)):
            pyramid.append(max_pool(pyramid[-1], 2))
        return dict(zip(self.names, self.layers(pyramid), strict=True))
