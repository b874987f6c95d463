"""AugFPN: three repairs to FPN. Two are here; the third, soft RoI selection, is `MODEL.ROI_ROUTING.MODE soft`.

Guo et al., AugFPN: Improving Multi-scale Feature Learning for Object Detection, CVPR 2020, sections 3.1 and 3.2.
"""

from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from .errors import check_at_least
from .layers import MakeExtraLevels, chosen_extra_levels, conv, nearest, pooled_levels, size_of, top_down_path
from .neck import NECK_REGISTRY, Neck

AUXILIARY = "lateral_"
"""Prefix of the names of the laterals' pyramid, see `NeckBackbone.auxiliary_pyramids`."""


# `torch.fx` keeps it as one call, because it needs numbers. `torch.export` leaves sizes open where every context map
# has two rows and columns or more.
@torch.fx.wrap
def pooled_length(length: int, ratio: float) -> int:
    """Rows or columns that remain of `length` at this ratio, at least one."""
    return torch.sym_max(1, torch.sym_int(length * ratio))


class ResidualFeatureAugmentation(nn.Module):
    """Context of the highest level: R = Σ σ(w_i) · up(conv1×1_i(pool_i(C))), a weight w_i per ratio and pixel.

    It gives back what the 1×1 lateral of that level, which no higher level can help, loses with the channels.

    Args:
        in_channels: of the highest bottom-up level.
        out_channels: of the pyramid.
        ratios: sizes of the pooled maps relative to the input, above 0 and at most 1.

    Raises:
        ValueError: no ratios, or others than these.
    """

    def __init__(self, in_channels: int, out_channels: int, ratios: Sequence[float] = (0.1, 0.2, 0.3)) -> None:
        super().__init__()
        if not ratios or not all(isinstance(ratio, (int, float)) and 0 < ratio <= 1 for ratio in ratios):
            raise ValueError(f"ratios is {ratios!r}; it must be one or more numbers above 0 and at most 1")
        self.ratios = tuple(ratios)
        self.reduce = nn.ModuleList(conv(in_channels, out_channels) for _ in ratios)
        self.weigh = nn.Sequential(
            conv(len(ratios) * out_channels, out_channels, activation=F.relu),
            conv(out_channels, len(ratios), 3),
        )

    def contexts(self, x: Tensor) -> list[Tensor]:
        """(B, in_channels, H, W) to one (B, out_channels, H, W) per ratio."""
        height, width = size_of(x)
        contexts = []
        for ratio, reduce_channels in zip(self.ratios, self.reduce, strict=True):
            context = F.adaptive_avg_pool2d(x, (pooled_length(height, ratio), pooled_length(width, ratio)))
            context = reduce_channels(context)
            contexts.append(F.interpolate(context, size=(height, width), mode="bilinear", align_corners=True))
        return contexts

    def weights(self, contexts: list[Tensor]) -> Tensor:
        """Adaptive spatial fusion: (B, ratios, H, W) weights, each in (0, 1) on its own."""
        return self.weigh(torch.cat(contexts, dim=1)).sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, out_channels, H, W)."""
        contexts = self.contexts(x)
        weights = self.weights(contexts).split(1, dim=1)
        return reduce(add, (weights[i] * context for i, context in enumerate(contexts)))


@NECK_REGISTRY.register()
class AugFPN(Neck):
    """FPN whose highest level is augmented with context, and whose laterals are supervised in training.

    Consistent supervision makes the maps agree before they are summed: in training the detector's head, with the same
    parameters, also learns on the pyramid of the laterals, which `forward` then returns beside the other as
    "lateral_p2", "lateral_p3", … The authors train an auxiliary head instead, which pools each box from every lateral.

    Args:
        input_shapes: channels and stride of each bottom-up level, lowest level first.
        out_channels: channels of every output level.
        num_levels: output levels, 0 for as many as inputs.
        norm: a name that `detectron2.layers.get_norm` knows, "" for none.
        ratios: sizes of the pooled context maps relative to the highest input.
        supervision_weight: weight of the loss on the laterals, not negative; 0 for no such pyramid.
        extra_levels: makes the levels above the inputs, one of `necks.layers.EXTRA_LEVELS`.
    """

    @configurable
    def __init__(
        self,
        input_shapes: dict[str, ShapeSpec],
        out_channels: int,
        num_levels: int = 0,
        norm: str = "",
        ratios: Sequence[float] = (0.1, 0.2, 0.3),
        supervision_weight: float = 0.25,
        extra_levels: MakeExtraLevels = pooled_levels,
    ) -> None:
        super().__init__(input_shapes, out_channels, num_levels)
        check_at_least("supervision_weight", supervision_weight, 0)
        if supervision_weight:
            self.auxiliary_pyramids = {AUXILIARY: supervision_weight}
        self.lateral = nn.ModuleList(conv(channels, out_channels, norm=norm) for channels in self.in_channels)
        self.augment = ResidualFeatureAugmentation(self.in_channels[-1], out_channels, ratios)
        self.output = nn.ModuleList(conv(out_channels, out_channels, 3, norm) for _ in self.in_channels)
        self.extra = extra_levels(self.num_extra_levels, self.in_channels[-1], out_channels, norm)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shapes: dict[str, ShapeSpec]) -> dict[str, Any]:
        own = cfg.MODEL.NECK.AUGFPN
        return super().from_config(cfg, input_shapes) | {
            "norm": cfg.MODEL.NECK.NORM,
            "ratios": own.RATIOS,
            "supervision_weight": own.SUPERVISION_WEIGHT,
            "extra_levels": chosen_extra_levels(cfg),
        }

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        inputs = self.inputs(features)
        laterals = [lateral(x) for x, lateral in zip(inputs, self.lateral, strict=True)]
        *lower, highest = laterals
        merged = top_down_path([*lower, highest + self.augment(inputs[-1])], nearest, [add] * len(lower))
        maps = [output(m) for m, output in zip(merged, self.output, strict=True)]
        pyramid = dict(zip(self.names, self.extra(maps, inputs[-1]), strict=True))
        if self.training and self.auxiliary_pyramids:
            auxiliary = self.extra(laterals, inputs[-1])
            pyramid |= {AUXILIARY + name: x for name, x in zip(self.names, auxiliary, strict=True)}
        return pyramid
