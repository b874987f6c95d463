"""RoIAlign on a feature pyramid: what each box sees of the levels that it reads.

With a fixed sampling ratio, RoIAlign is a sparse linear map: each output bin is a weighted sum of 4·S² pixels. All
levels and images are laid end to end as one table of pixels that all refinement stages share; the indices and weights
of every bin follow from the boxes by plain arithmetic, and one `embedding_bag` does the pooling for all of them.

He et al., Mask R-CNN, ICCV 2017 (RoIAlign).
"""

from collections.abc import Sequence

import torch
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from torch import Tensor, nn
from torch.nn import functional as F


class Pyramid:
    """The feature maps that the head reads, the same in all of its stages.

    Attributes:
        maps: (B, C, H, W) of each level, lowest (finest) first.
        pixels: (ΣB·H·W, C), all levels and images end to end; row start + (b·H + y)·W + x is a pixel of image b.
        layout: (3, L) int64, a row each for height, width and the row of `pixels` where a level starts.
    """

    def __init__(self, maps: Sequence[Tensor]):
        self.maps = tuple(maps)
        # Not `cached_property`: its lock stops `torch.compile`.
        self._pixels: Tensor | None = None
        self._layout: Tensor | None = None

    @property
    def pixels(self) -> Tensor:
        if self._pixels is None:
            self._pixels = self.lay_out()
        return self._pixels

    @property
    def layout(self) -> Tensor:
        if self._layout is None:
            rows = [m.shape[0] * m.shape[2] * m.shape[3] for m in self.maps]
            heights, widths = zip(*(m.shape[2:] for m in self.maps), strict=True)
            starts = [sum(rows[:i]) for i in range(len(rows))]
            self._layout = _integers([heights, widths, starts]).to(self.maps[0].device, non_blocking=True)
        return self._layout

    def lay_out(self) -> Tensor:
        """Make `pixels`; called once, when a box first reads them."""
        return torch.cat([m.permute(0, 2, 3, 1).flatten(0, 2) for m in self.maps])

    def sum_pixels(self, index: Tensor, weight: Tensor) -> Tensor:
        """Weighted sums of pixels.

        Args:
            index: (bins, n) int64 rows of `pixels`.
            weight: (bins, n) that each row is multiplied by; no gradient flows to it.

        Returns:
            (bins, C) in the type of `pixels`.
        """
        weight = weight.to(self.pixels.dtype)
        return F.embedding_bag(index, self.pixels, mode="sum", per_sample_weights=weight)


def _integers(table: Sequence[Sequence[int]]) -> Tensor:
    """An int64 tensor of sizes, which stay variables where `torch.jit.trace` records."""
    if torch.jit.is_tracing():
        return torch.stack([torch.stack([torch.as_tensor(value) for value in row]) for row in table])
    return torch.tensor(table)


class Pooler(nn.Module):
    """RoIAlign (aligned: pixel centers at half coordinates) of boxes on one level or on all levels of a pyramid.

    Args:
        strides: stride of each level in pixels, lowest level first, each twice the one before.
        resolution: bins along each side.
        sampling_ratio: S, samples along each side of a bin.
    """

    def __init__(self, strides: list[int], resolution: int = 7, sampling_ratio: int = 2):
        super().__init__()
        self.strides = strides
        self.resolution = resolution
        self.sampling_ratio = sampling_ratio

    def prepare(self, features: Sequence[Tensor]) -> Pyramid:
        """The pyramid of (B, C, H, W) levels, lowest first, as `pool` and `pool_all_levels` read it."""
        return Pyramid(features)

    def pool(self, pyramid: Pyramid, boxes: Tensor, levels: Tensor) -> Tensor:
        """Features of each box on its level.

        Args:
            pyramid: from `prepare`.
            boxes: (B, N, 4) absolute xyxy; no gradient flows to them.
            levels: (B, N) int64, 0 for the lowest.

        Returns:
            (B·N, resolution², C); samples outside the image count as zero.
        """
        raise NotImplementedError

    def pool_all_levels(self, pyramid: Pyramid, boxes: Tensor) -> Tensor:
        """Features of each of (B, N, 4) absolute xyxy boxes on every level: (L, B·N, resolution², C)."""
        raise NotImplementedError


class Bins(nn.Module):
    """Computes which pixels the bins of RoIAlign sum, and with which weights. The arguments are those of `Pooler`."""

    scales: Tensor

    def __init__(self, strides: list[int], resolution: int, sampling_ratio: int):
        super().__init__()
        self.resolution = resolution
        self.sampling_ratio = sampling_ratio
        self.register_buffer("scales", torch.tensor([1 / s for s in strides]), persistent=False)

    def forward(self, layout: Tensor, boxes: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels and weights of every bin of every box.

        Args:
            layout: (3, L), see `Pyramid`.
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
        """Pixels along one axis that each bin reads (int64) and their weights: both (..., resolution, 2·S).

        Bilinear interpolation reads two pixels for each of the S samples of a bin.

        Args:
            low, high: (...) where boxes begin and end, in pixels of their level.
            size: (...) pixels of that level along the axis.
        """
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

    def __init__(self, strides: list[int], resolution: int = 7, sampling_ratio: int = 2):
        super().__init__(strides, resolution, sampling_ratio)
        self.bins = Bins(strides, resolution, sampling_ratio)

    def pool(self, pyramid: Pyramid, boxes: Tensor, levels: Tensor) -> Tensor:
        # Proposals learn through the deltas alone, as with detectron2's RoIAlign.
        index, weight = self.bins(pyramid.layout, boxes.detach(), levels)
        return pyramid.sum_pixels(index, weight).unflatten(0, (-1, self.resolution**2))

    def pool_all_levels(self, pyramid: Pyramid, boxes: Tensor) -> Tensor:
        levels = torch.arange(len(self.strides), device=boxes.device)[:, None, None].expand(-1, *boxes.shape[:2])
        pooled = self.pool(pyramid, boxes.expand(len(self.strides), -1, -1, -1), levels)
        return pooled.unflatten(0, (len(self.strides), -1))


class DetectronPooler(Pooler):
    """detectron2's `ROIPooler`, the baseline; it assigns levels itself, by the formula of `assign_levels`.

    Args:
        strides, resolution, sampling_ratio: see `Pooler`; a sampling ratio of 0 adapts to the size of a box.
        canonical_level, canonical_size: see `assign_levels`.

    Pooling raises FloatingPointError if a box is infinite or NaN.
    """

    def __init__(
        self,
        strides: list[int],
        resolution: int = 7,
        sampling_ratio: int = 2,
        canonical_level: int = 4,
        canonical_size: float = 224.0,
    ):
        super().__init__(strides, resolution, sampling_ratio)
        scales = [1 / stride for stride in strides]
        self.pooler = ROIPooler(
            resolution,
            scales,
            sampling_ratio,
            "ROIAlignV2",
            canonical_box_size=canonical_size,
            canonical_level=canonical_level,
        )

    def pool(self, pyramid: Pyramid, boxes: Tensor, levels: Tensor) -> Tensor:
        _check_finite(boxes)
        return self.pooler(list(pyramid.maps), [Boxes(b) for b in boxes]).flatten(2).transpose(1, 2)

    def pool_all_levels(self, pyramid: Pyramid, boxes: Tensor) -> Tensor:
        _check_finite(boxes)
        image = torch.arange(len(boxes), device=boxes.device)[:, None, None].expand(-1, boxes.shape[1], 1)
        rois = torch.cat([image.to(boxes.dtype), boxes], dim=-1).flatten(0, 1)
        pooled = [pool(m, rois) for pool, m in zip(self.pooler.level_poolers, pyramid.maps, strict=True)]
        return torch.stack(pooled).flatten(3).transpose(2, 3)


def _check_finite(boxes: Tensor) -> None:
    """Refuse (B, N, 4) xyxy boxes without a finite size: torchvision's RoIAlign reads memory that is not its own."""
    broken = int((~(boxes[..., 2:] - boxes[..., :2]).isfinite()).any(-1).sum())
    if broken:
        raise FloatingPointError(
            f"{broken} of {boxes.shape[:2].numel()} boxes are infinite or NaN, which detectron2's ROIPooler cannot "
            "pool. In training lower SOLVER.BASE_LR or lengthen the warm-up; else look at the weights"
        )
