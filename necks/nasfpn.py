"""NAS-FPN: the pyramid that architecture search found, seven merging cells stacked several times.

Ghiasi et al., NAS-FPN: Learning Scalable Feature Pyramid Architecture for Object Detection, CVPR 2019, figure 7 (f).
"""

import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from .layers import Size, conv, nearest, size_of
from .neck import NECK_REGISTRY, Neck, NeckConfigError, check_at_least

NUM_LEVELS = 5
CELLS = ("gp_64_4", "sum_44_4", "sum_43_3", "sum_34_4", "gp_43_5", "gp_54_7", "gp_75_6")
"""Operation, levels read and level written; the published network works on levels 3 to 7."""
CELLS_READ = (3, 4, 5, 7, 7)
"""How many of the cells, from the first, it takes to make the lowest level, the two lowest, and so on."""


def resize(x: Tensor, size: Size) -> Tensor:
    """(B, C, H, W) to `size`: nearest neighbour to enlarge, the maximum of the pixels that fall together to reduce."""
    (height, width), (target_height, target_width) = size_of(x), size
    if height > target_height or width > target_width:
        return F.adaptive_max_pool2d(x, size)
    return nearest(x, size)


def add(a: Tensor, b: Tensor, size: Size) -> Tensor:
    """The sum of two (B, C, H, W) maps at `size`."""
    return resize(a, size) + resize(b, size)


def gate(a: Tensor, b: Tensor, size: Size) -> Tensor:
    """Global pooling cell at `size`: b + sigmoid(spatial mean of b) · a."""
    a, b = resize(a, size), resize(b, size)
    return b + b.mean(dim=(2, 3), keepdim=True).sigmoid() * a


class MergingCells(nn.Module):
    """One layer of NAS-FPN. Each cell merges maps, then applies ReLU, a 3×3 convolution and the norm.

    Args:
        channels: of every level.
        norm: a name that `detectron2.layers.get_norm` knows, "" for none.
        num_outputs: levels that somebody reads, from the lowest. Cells that only others need are left out, because
            their parameters would get no gradient.
    """

    def __init__(self, channels: int, norm: str = "", num_outputs: int = NUM_LEVELS):
        super().__init__()
        self.num_outputs = num_outputs
        cells = CELLS[: CELLS_READ[num_outputs - 1]]
        self.output = nn.ModuleDict({cell: conv(channels, channels, 3, norm) for cell in cells})

    def forward(self, pyramid: list[Tensor]) -> list[Tensor]:
        """Five (B, C, H, W) maps, finest first, to `num_outputs` of the same sizes; named 3 to 7 as in the paper."""
        p3, p4, p5, p6, p7 = pyramid
        size3, size4, size5, size6, size7 = (size_of(p) for p in pyramid)

        def finish(cell: str, merged: Tensor) -> Tensor:
            return self.output[cell](F.relu(merged))

        inner4 = finish("gp_64_4", gate(p6, p4, size4))
        inner4 = finish("sum_44_4", add(inner4, p4, size4))
        out3 = finish("sum_43_3", add(inner4, p3, size3))
        if self.num_outputs == 1:
            return [out3]
        out4 = finish("sum_34_4", add(out3, inner4, size4))
        if self.num_outputs == 2:
            return [out3, out4]
        out5 = finish("gp_43_5", p5 + gate(out4, out3, size5))
        if self.num_outputs == 3:
            return [out3, out4, out5]
        out7 = finish("gp_54_7", p7 + gate(out5, inner4, size7))
        out6 = finish("gp_75_6", gate(out7, out5, size6))
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
        NeckConfigError: more than five levels, or no layer at all.
    """

    @configurable
    def __init__(
        self,
        input_shapes: dict[str, ShapeSpec],
        out_channels: int,
        num_levels: int = 0,
        norm: str = "",
        stack: int = 7,
    ):
        super().__init__(input_shapes, out_channels, num_levels)
        if len(self.levels) > NUM_LEVELS:
            raise NeckConfigError(
                f"MODEL.NECK.IN_FEATURES and MODEL.NECK.NUM_LEVELS ask for {len(self.levels)} levels: "
                f"the cells of NASFPN join {NUM_LEVELS}, choose that many or fewer"
            )
        check_at_least("MODEL.NECK.NASFPN.STACK", stack, 1)
        self.lateral = nn.ModuleList(conv(channels, out_channels, norm=norm) for channels in self.in_channels)
        outputs = [NUM_LEVELS] * (stack - 1) + [len(self.levels)]
        self.layers = nn.Sequential(*(MergingCells(out_channels, norm, count) for count in outputs))

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shapes: dict[str, ShapeSpec]) -> dict:
        own = {"norm": cfg.MODEL.NECK.NORM, "stack": cfg.MODEL.NECK.NASFPN.STACK}
        return super().from_config(cfg, input_shapes) | own

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        pyramid = [lateral(x) for x, lateral in zip(self.inputs(features), self.lateral, strict=True)]
        for _ in range(NUM_LEVELS - len(pyramid)):
            pyramid.append(F.max_pool2d(pyramid[-1], 2, ceil_mode=True))
        return dict(zip(self.names, self.layers(pyramid), strict=True))
