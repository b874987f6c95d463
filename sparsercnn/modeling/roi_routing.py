"""Which pyramid level each box reads, and the features it reads there.

With a fixed sampling ratio, RoIAlign is a sparse linear map: each output bin is a weighted sum of 4·S² pixels. The
pyramid is laid out once as a table of pixels that all refinement stages share; the indices and weights of every bin
follow from the boxes by plain arithmetic, and one `sum_rows` does the pooling for all levels and images.

He et al., Mask R-CNN, ICCV 2017 (RoIAlign); Lin et al., Feature Pyramid Networks, CVPR 2017, equation 1 (routing);
Liu et al., PANet, CVPR 2018, section 3.2 (adaptive); Guo et al., AugFPN, CVPR 2020, section 3.3 (soft).
"""

import math
from dataclasses import dataclass

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError
from ..fast.row_sums import differentiable_table, sum_rows


def assign_levels(boxes: Tensor, levels: range, canonical_level: int = 4, canonical_size: float = 224.0) -> Tensor:
    """Pyramid level that each box reads: floor(k0 + log2(sqrt(w * h) / 224)), clamped to `levels`.

    Lin et al., Feature Pyramid Networks, CVPR 2017, equation 1.

    Args:
        boxes: (..., 4) absolute xyxy in pixels of the network input. A box without area reads the lowest level.
        levels: pyramid levels present, for example range(2, 6) for p2 to p5.

    Returns:
        (...) int64.
    """
    width, height = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).unbind(-1)
    # The small constant is detectron2's; it decides the level of boxes that lie exactly on a border.
    level = torch.floor(canonical_level + torch.log2((width * height).sqrt() / canonical_size + 1e-8))
    return level.nan_to_num(nan=levels[0]).clamp(levels[0], levels[-1]).long()


class Pooler(nn.Module):
    """RoIAlign on a pyramid, split in what is done once a forward pass and what each refinement stage does.

    Args:
        strides: of each level, lowest first, each twice the one before.
        canonical_level, canonical_size: of `assign_levels`.
        resolution: bins along each side.
        sampling_ratio: S samples along each side of a bin.
    """

    def __init__(
        self,
        strides: list[int],
        canonical_level: int = 4,
        canonical_size: float = 224.0,
        resolution: int = 7,
        sampling_ratio: int = 2,
    ):
        super().__init__()
        lowest = int(math.log2(strides[0]))
        self.strides = strides
        self.levels = range(lowest, lowest + len(strides))
        self.canonical_level = canonical_level
        self.canonical_size = canonical_size
        self.resolution = resolution
        self.sampling_ratio = sampling_ratio

    def assign_levels(self, boxes: Tensor) -> Tensor:
        """Pyramid level that each of (..., 4) absolute xyxy boxes reads."""
        return assign_levels(boxes, self.levels, self.canonical_level, self.canonical_size)

    def prepare(self, features: list[Tensor]):
        """What the stages share, from the (B, C, H, W) levels of a pyramid, lowest first."""
        raise NotImplementedError

    def pool(self, pyramid, boxes: Tensor) -> Tensor:
        """Features of each box on the level it is routed to.

        Args:
            pyramid: from `prepare`.
            boxes: (B, N, 4) absolute xyxy; no gradient flows to them.

        Returns:
            (B·N, resolution², C); samples outside the image count as zero.
        """
        raise NotImplementedError

    def pool_all_levels(self, pyramid, boxes: Tensor) -> Tensor:
        """Features of each box on every level: (L, B·N, resolution², C)."""
        raise NotImplementedError


@dataclass
class PixelTable:
    """All levels and images of a pyramid, end to end.

    `pixels` is (ΣB·H·W, C); pooling replaces it by an alias that leads gradients to it. `layout` is (3, L) int64, a row
    each: height and width of a level, and the row of `pixels` where it starts.
    """

    pixels: Tensor
    layout: Tensor

    def provide(self, index: Tensor) -> None:
        """Called before these rows are read: here, all are there."""


class Bins(nn.Module):
    """Which pixels the bins of RoIAlign sum. Args: see `Pooler`."""

    def __init__(self, strides: list[int], resolution: int, sampling_ratio: int):
        super().__init__()
        self.resolution = resolution
        self.sampling_ratio = sampling_ratio
        self.register_buffer("scales", torch.tensor([1 / s for s in strides]), persistent=False)

    def forward(self, layout: Tensor, boxes: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            layout: (3, L), see `PixelTable`.
            boxes: (..., B, N, 4) absolute xyxy.
            levels: (..., B, N) that they read, 0 for the lowest.

        Returns:
            Rows of the pixel table that each bin sums (int64), and their weights: both (number of bins, 4·S²).
        """
        height, width, start = layout[:, levels]
        x0, y0, x1, y1 = (boxes * self.scales[levels][..., None] - 0.5).unbind(-1)
        row, row_weight = self._taps(y0, y1, height)
        column, column_weight = self._taps(x0, x1, width)
        image = torch.arange(boxes.shape[-3], device=boxes.device)[:, None]
        row = (start + image * height * width)[..., None, None] + row * width[..., None, None]
        index = row[..., :, None, :, None] + column[..., None, :, None, :]
        weight = row_weight[..., :, None, :, None] * column_weight[..., None, :, None, :]
        taps = (2 * self.sampling_ratio) ** 2
        return index.reshape(-1, taps), weight.reshape(-1, taps)

    def _taps(self, low: Tensor, high: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels along one axis that each bin reads (int64) and their weights: both (..., resolution, 2·S)."""
        # In the order of torchvision's kernel, so that the positions round as they do there: what differs here grows
        # from stage to stage.
        bins = torch.arange(self.resolution, device=low.device, dtype=low.dtype)[:, None]
        samples = torch.arange(self.sampling_ratio, device=low.device, dtype=low.dtype) + 0.5
        low, high, size = (t[..., None, None] for t in (low, high, size))
        bin_size = (high - low) / self.resolution
        position = low + bins * bin_size + samples * bin_size / self.sampling_ratio
        # A sample more than a pixel outside reads nothing; a closer one reads the border.
        inside = (position >= -1) & (position <= size)
        position = torch.where(inside, position, 0).clamp(min=0)
        floor = torch.minimum(position.long(), size - 1)
        ceil = torch.minimum(floor + 1, size - 1)
        inside = inside.to(low.dtype)
        fraction = (position - floor) * inside
        pixel = torch.stack([floor, ceil], dim=-1)
        weight = torch.stack([inside - fraction, fraction], dim=-1) / self.sampling_ratio
        return pixel.flatten(-2), weight.flatten(-2)


class FusedPooler(Pooler):
    """All levels and images in one lookup, equal to detectron2's `ROIPooler` and differentiable in the features."""

    def __init__(self, strides: list[int], *args, **kwargs):
        super().__init__(strides, *args, **kwargs)
        self.bins = Bins(strides, self.resolution, self.sampling_ratio)

    def prepare(self, features: list[Tensor]) -> PixelTable:
        pixels = torch.cat([f.permute(0, 2, 3, 1).flatten(0, 2) for f in features])
        return PixelTable(differentiable_table(pixels), self.layout(features))

    def layout(self, features: list[Tensor]) -> Tensor:
        """See `PixelTable`."""
        rows = [f.shape[0] * f.shape[2] * f.shape[3] for f in features]
        heights, widths = zip(*(f.shape[2:] for f in features), strict=True)
        starts = [sum(rows[:i]) for i in range(len(rows))]
        return torch.tensor([heights, widths, starts]).to(features[0].device, non_blocking=True)

    def pool(self, table: PixelTable, boxes: Tensor) -> Tensor:
        return self._pool(table, boxes, self.assign_levels(boxes) - self.levels[0])

    def pool_all_levels(self, table: PixelTable, boxes: Tensor) -> Tensor:
        levels = torch.arange(len(self.levels), device=boxes.device)[:, None, None].expand(-1, *boxes.shape[:2])
        pooled = self._pool(table, boxes.expand(len(self.levels), -1, -1, -1), levels)
        return pooled.unflatten(0, (len(self.levels), -1))

    def _pool(self, table: PixelTable, boxes: Tensor, levels: Tensor) -> Tensor:
        index, weight = self.bins(table.layout, boxes.detach(), levels)
        table.provide(index)
        pooled, table.pixels = sum_rows(table.pixels, index, weight.to(table.pixels.dtype))
        return pooled.unflatten(0, (-1, self.resolution**2))


class DetectronPooler(Pooler):
    """detectron2's `ROIPooler`: the baseline."""

    def __init__(self, strides: list[int], *args, **kwargs):
        super().__init__(strides, *args, **kwargs)
        self.pooler = ROIPooler(
            self.resolution,
            [1 / s for s in strides],
            self.sampling_ratio,
            "ROIAlignV2",
            canonical_box_size=self.canonical_size,
            canonical_level=self.canonical_level,
        )

    def prepare(self, features: list[Tensor]) -> list[Tensor]:
        return features

    def pool(self, features: list[Tensor], boxes: Tensor) -> Tensor:
        return self.pooler(features, [Boxes(b) for b in boxes]).flatten(2).transpose(1, 2)

    def pool_all_levels(self, features: list[Tensor], boxes: Tensor) -> Tensor:
        image = torch.arange(len(boxes), device=boxes.device)[:, None, None].expand(-1, boxes.shape[1], 1)
        rois = torch.cat([image.to(boxes.dtype), boxes], dim=-1).flatten(0, 1)
        pooled = [pool(f, rois) for pool, f in zip(self.pooler.level_poolers, features, strict=True)]
        return torch.stack(pooled).flatten(3).transpose(2, 3)


class LevelRouting(nn.Module):
    """Each box reads the one level that fits its size."""

    def __init__(self, pooler: nn.Module, channels: int, num_levels: int):
        super().__init__()
        self.pooler = pooler

    def prepare(self, features: list[Tensor]):
        """What `forward` needs of the pyramid, computed once for all stages."""
        return self.pooler.prepare(features)

    def forward(self, pyramid, boxes: Tensor) -> Tensor:
        """RoI features (B·N, resolution², C) of (B, N, 4) absolute xyxy boxes."""
        return self.pooler.pool(pyramid, boxes)


class AdaptiveRouting(LevelRouting):
    """Each box reads all levels through a linear layer each, and keeps the element-wise maximum (PANet)."""

    def __init__(self, pooler: nn.Module, channels: int, num_levels: int):
        super().__init__(pooler, channels, num_levels)
        self.linear = nn.ModuleList(nn.Linear(channels, channels) for _ in range(num_levels))

    def forward(self, pyramid, boxes: Tensor) -> Tensor:
        pooled = self.pooler.pool_all_levels(pyramid, boxes)
        return torch.stack([F.relu(fc(x)) for fc, x in zip(self.linear, pooled, strict=True)]).amax(0)


class SoftRouting(LevelRouting):
    """Each box reads all levels, summed with weights that a small network gives each bin (AugFPN)."""

    def __init__(self, pooler: nn.Module, channels: int, num_levels: int):
        super().__init__(pooler, channels, num_levels)
        self.resolution = pooler.resolution
        self.weights = nn.Sequential(
            nn.Conv2d(channels * num_levels, channels, 1),
            nn.ReLU(),
            nn.Conv2d(channels, num_levels, 3, padding=1),
        )

    def forward(self, pyramid, boxes: Tensor) -> Tensor:
        pooled = self.pooler.pool_all_levels(pyramid, boxes)  # (L, R, bins, C)
        maps = pooled.permute(1, 0, 3, 2).flatten(1, 2).unflatten(-1, (self.resolution, self.resolution))
        weights = self.weights(maps).softmax(1).flatten(2)  # (R, L, bins)
        return torch.einsum("lrbc,rlb->rbc", pooled, weights)


POOLERS = {"fused": FusedPooler, "ROIPooler": DetectronPooler}
ROUTINGS = {"level": LevelRouting, "adaptive": AdaptiveRouting, "soft": SoftRouting}


def build_roi_routing(cfg, input_shape: dict[str, ShapeSpec]) -> LevelRouting:
    """The routing that `MODEL.ROI_ROUTING` names, over the levels `MODEL.ROI_HEADS.IN_FEATURES` of `input_shape`.

    Raises:
        InputError: an unknown mode or pooler, or levels whose strides do not double.
    """
    node = cfg.MODEL.ROI_ROUTING
    for key, choices in (("MODE", ROUTINGS), ("POOLER", POOLERS)):
        if node[key] not in choices:
            raise InputError(f"MODEL.ROI_ROUTING.{key} is '{node[key]}'; choose one of {', '.join(choices)}.")
    names = cfg.MODEL.ROI_HEADS.IN_FEATURES
    strides = [input_shape[name].stride for name in names]
    if any(high != 2 * low for low, high in zip(strides, strides[1:], strict=False)):
        raise InputError(f"MODEL.ROI_HEADS.IN_FEATURES {names} have strides {strides}; each must be twice the last.")
    box_head = cfg.MODEL.ROI_BOX_HEAD
    if box_head.POOLER_TYPE != "ROIAlignV2":
        raise InputError(f"MODEL.ROI_BOX_HEAD.POOLER_TYPE is '{box_head.POOLER_TYPE}'; it must be ROIAlignV2.")
    if node.POOLER == "fused" and box_head.POOLER_SAMPLING_RATIO < 1:
        raise InputError(
            f"MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO is {box_head.POOLER_SAMPLING_RATIO}; the fused pooler needs at "
            "least 1. Set MODEL.ROI_ROUTING.POOLER to ROIPooler for an adaptive ratio."
        )
    pooler = POOLERS[node.POOLER](
        strides,
        node.CANONICAL_LEVEL,
        node.CANONICAL_BOX_SIZE,
        box_head.POOLER_RESOLUTION,
        box_head.POOLER_SAMPLING_RATIO,
    )
    return ROUTINGS[node.MODE](pooler, input_shape[names[0]].channels, len(names))
