"""Which levels of the pyramid each box reads, and what it makes of them.

Lin et al., Feature Pyramid Networks, CVPR 2017, equation 1 (level); Liu et al., PANet, CVPR 2018, section 3.2
(adaptive); Guo et al., AugFPN, CVPR 2020, section 3.3 (soft).
"""

import math
from typing import cast

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from ..errors import InputError
from .pooler import DetectronPooler, FusedPooler, Pooler, Pyramid


def assign_levels(boxes: Tensor, levels: range, canonical_level: int = 4, canonical_size: float = 224.0) -> Tensor:
    """Pyramid level that each box reads: floor(k0 + log2(sqrt(w * h) / 224)), clamped to `levels`.

    Lin et al., Feature Pyramid Networks, CVPR 2017, equation 1.

    Args:
        boxes: (..., 4) absolute xyxy in pixels of the network input. A box without area reads the lowest level.
        levels: pyramid levels present, for example range(2, 6) for p2 to p5.
        canonical_level: k0, the level that a box of the canonical size reads.
        canonical_size: side in pixels of such a box, 224.

    Returns:
        (...) int64.
    """
    width, height = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).unbind(-1)
    # The small constant is detectron2's; it decides the level of boxes that lie exactly on a border.
    level = torch.floor(canonical_level + torch.log2((width * height).sqrt() / canonical_size + 1e-8))
    # Boxes that are not numbers must not index out of the pyramid; in training the matcher reports them.
    return level.nan_to_num(nan=levels[0]).clamp(levels[0], levels[-1]).long()


class LevelRouting(nn.Module):
    """Each box reads the one level that fits its size.

    Args:
        pooler: RoIAlign on the pyramid.
        channels: of every level, for routings that have layers of their own.
        canonical_level, canonical_size: see `assign_levels`.
    """

    def __init__(self, pooler: Pooler, channels: int, canonical_level: int = 4, canonical_size: float = 224.0):
        super().__init__()
        self.pooler = pooler
        lowest = int(math.log2(pooler.strides[0]))
        self.levels = range(lowest, lowest + len(pooler.strides))
        self.canonical_level = canonical_level
        self.canonical_size = canonical_size

    def assign_levels(self, boxes: Tensor) -> Tensor:
        """Pyramid level, in `levels`, that fits each of (..., 4) absolute xyxy boxes: (...) int64."""
        return assign_levels(boxes, self.levels, self.canonical_level, self.canonical_size)

    def forward(self, pyramid: Pyramid, boxes: Tensor) -> Tensor:
        """RoI features (B·N, resolution², C) of (B, N, 4) absolute xyxy boxes."""
        return self.pooler.pool(pyramid, boxes, self.assign_levels(boxes) - self.levels[0])


class AdaptiveRouting(LevelRouting):
    """Each box reads all levels through a 3×3 convolution, group norm and ReLU each, and keeps the maximum (PANet).

    That is the first layer of the authors' convolutional box head; the maximum is taken behind it, element by element.
    """

    def __init__(self, pooler: Pooler, channels: int, canonical_level: int = 4, canonical_size: float = 224.0):
        super().__init__(pooler, channels, canonical_level, canonical_size)
        self.adapt = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, channels, 3, padding=1, bias=False),
                nn.GroupNorm(math.gcd(32, channels), channels),
                nn.ReLU(),
            )
            for _ in pooler.strides
        )

    def forward(self, pyramid: Pyramid, boxes: Tensor) -> Tensor:
        pooled = self.pooler.pool_all_levels(pyramid, boxes)  # (L, R, bins, C)
        maps = pooled.transpose(2, 3).unflatten(-1, (self.pooler.resolution,) * 2)
        adapted = torch.stack([adapt(x) for adapt, x in zip(self.adapt, maps, strict=True)])
        return adapted.amax(0).flatten(2).transpose(1, 2)


class SoftRouting(LevelRouting):
    """Each box reads all levels, summed with weights that a small network gives each bin (AugFPN).

    As in the authors' code each weight is a sigmoid of its own, so that the weights of a bin need not sum to one.
    """

    def __init__(self, pooler: Pooler, channels: int, canonical_level: int = 4, canonical_size: float = 224.0):
        super().__init__(pooler, channels, canonical_level, canonical_size)
        num_levels = len(pooler.strides)
        self.weights = nn.Sequential(
            nn.Conv2d(channels * num_levels, channels, 1),
            nn.ReLU(),
            nn.Conv2d(channels, num_levels, 3, padding=1),
        )

    def forward(self, pyramid: Pyramid, boxes: Tensor) -> Tensor:
        pooled = self.pooler.pool_all_levels(pyramid, boxes)  # (L, R, bins, C)
        maps = pooled.permute(1, 0, 3, 2).flatten(1, 2).unflatten(-1, (self.pooler.resolution,) * 2)
        weights = self.weights(maps).sigmoid().flatten(2)  # (R, L, bins)
        return torch.einsum("lrbc,rlb->rbc", pooled, weights)


ROUTINGS: dict[str, type[LevelRouting]] = {"level": LevelRouting, "adaptive": AdaptiveRouting, "soft": SoftRouting}
POOLERS = ("fused", "ROIPooler")


def build_roi_routing(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> LevelRouting:
    """The routing that `MODEL.ROI_ROUTING` names, over the levels `MODEL.ROI_HEADS.IN_FEATURES` of `input_shape`.

    Raises:
        InputError: an unknown mode or pooler, or levels whose strides do not double.
    """
    node, box_head = cfg.MODEL.ROI_ROUTING, cfg.MODEL.ROI_BOX_HEAD
    for key, choices in (("MODE", ROUTINGS), ("POOLER", POOLERS)):
        if node[key] not in choices:
            raise InputError(f"MODEL.ROI_ROUTING.{key} is '{node[key]}'; choose one of {', '.join(choices)}.")
    names = cfg.MODEL.ROI_HEADS.IN_FEATURES
    # `ShapeSpec` may leave out either, backbones do not.
    strides = cast(list[int], [input_shape[name].stride for name in names])
    channels = cast(int, input_shape[names[0]].channels)
    if any(high != 2 * low for low, high in zip(strides, strides[1:], strict=False)):
        raise InputError(f"MODEL.ROI_HEADS.IN_FEATURES {names} have strides {strides}; each must be twice the last.")
    if box_head.POOLER_TYPE != "ROIAlignV2":
        raise InputError(f"MODEL.ROI_BOX_HEAD.POOLER_TYPE is '{box_head.POOLER_TYPE}'; it must be ROIAlignV2.")
    if node.POOLER == "fused" and box_head.POOLER_SAMPLING_RATIO < 1:
        raise InputError(
            f"MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO is {box_head.POOLER_SAMPLING_RATIO}; the fused pooler needs at "
            "least 1. Set MODEL.ROI_ROUTING.POOLER to ROIPooler for an adaptive ratio."
        )
    canonical = node.CANONICAL_LEVEL, node.CANONICAL_BOX_SIZE
    geometry = strides, box_head.POOLER_RESOLUTION, box_head.POOLER_SAMPLING_RATIO
    pooler: Pooler = FusedPooler(*geometry) if node.POOLER == "fused" else DetectronPooler(*geometry, *canonical)
    return ROUTINGS[node.MODE](pooler, channels, *canonical)
