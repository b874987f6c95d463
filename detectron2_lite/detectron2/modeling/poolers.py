"""RoI pooling from a feature pyramid, each box from the level that suits its size.

Lin et al., Feature Pyramid Networks for Object Detection, CVPR 2017, equation 1.
"""

import math
from typing import cast

import torch
from torch import Tensor, nn
from torchvision.ops import RoIPool

from detectron2.layers import ROIAlign, cat, nonzero_tuple, shapes_to_tensor
from detectron2.structures import Boxes

__all__ = ["ROIPooler"]


def assign_boxes_to_levels(
    box_lists: list[Boxes], min_level: int, max_level: int, canonical_box_size: int, canonical_level: int
) -> Tensor:
    """Level that each box reads: floor(canonical_level + log2(sqrt(area) / canonical_box_size)), clamped.

    Args:
        box_lists: absolute boxes of each image, in pixels of the network input.
        min_level, max_level: lowest and highest level present, as log2 of the stride.
        canonical_box_size: a square box of this side reads `canonical_level`.
        canonical_level: see above.

    Returns:
        (N,) int64 for the N boxes of all images in order; 0 stands for `min_level`.
    """
    box_sizes = torch.sqrt(cat([boxes.area() for boxes in box_lists]))
    # The small number keeps the logarithm of boxes without area finite.
    levels = torch.floor(canonical_level + torch.log2(box_sizes / canonical_box_size + 1e-8))
    return torch.clamp(levels, min=min_level, max=max_level).to(torch.int64) - min_level


def convert_boxes_to_pooler_format(box_lists: list[Boxes]) -> Tensor:
    """(N, 5), image index and xyxy, for the N boxes of all images in order."""
    boxes = torch.cat([x.tensor for x in box_lists], dim=0)
    sizes = shapes_to_tensor([x.tensor.shape[0] for x in box_lists], device=boxes.device)
    image_index = torch.arange(len(box_lists), dtype=boxes.dtype, device=boxes.device)
    return cat([torch.repeat_interleave(image_index, sizes, dim=0)[:, None], boxes], dim=1)


@torch.jit.script_if_tracing
def _pooled_zeros(rois: Tensor, features: Tensor, size: list[int]) -> Tensor:
    # Scripted while tracing, so that the number of boxes does not become a constant of the traced graph.
    shape = (rois.shape[0], features.shape[1], size[0], size[1])
    return torch.zeros(shape, dtype=features.dtype, device=features.device)


class ROIPooler(nn.Module):
    """Pools every box from the pyramid level that suits its size.

    Args:
        output_size: side, or (height, width), of the pooled grid.
        scales: scale of each feature map relative to the network input, 1 / stride, highest resolution first. Strides
            are powers of 2, each twice the one before.
        sampling_ratio: samples per bin and axis, see `ROIAlign`.
        pooler_type: "ROIAlignV2" (aligned), "ROIAlign" (half a pixel off, as originally published) or "ROIPool".
        canonical_box_size: a square box of this side, in pixels, reads `canonical_level`.
        canonical_level: level as log2 of the stride; 4 and 224 as in the paper.

    Raises:
        ValueError: for an unknown `pooler_type`.
    """

    def __init__(
        self,
        output_size: int | tuple[int, int] | list[int],
        scales: list[float] | tuple[float, ...],
        sampling_ratio: int,
        pooler_type: str,
        canonical_box_size: float = 224,
        canonical_level: int = 4,
    ) -> None:
        super().__init__()
        if isinstance(output_size, int):
            output_size = (output_size, output_size)
        assert len(output_size) == 2
        assert isinstance(output_size[0], int) and isinstance(output_size[1], int)
        self.output_size = output_size
        self.level_poolers = nn.ModuleList(_level_pooler(pooler_type, output_size, s, sampling_ratio) for s in scales)

        min_level, max_level = -math.log2(scales[0]), -math.log2(scales[-1])
        assert math.isclose(min_level, int(min_level)) and math.isclose(max_level, int(max_level)), (
            "Featuremap stride is not power of 2!"
        )
        self.min_level = int(min_level)
        self.max_level = int(max_level)
        assert len(scales) == self.max_level - self.min_level + 1, (
            "[ROIPooler] Sizes of input featuremaps do not form a pyramid!"
        )
        assert 0 <= self.min_level <= self.max_level
        self.canonical_level = canonical_level
        assert canonical_box_size > 0
        # TorchScript is given whole numbers only, as by default.
        self.canonical_box_size = cast(int, canonical_box_size)

    def forward(self, x: list[Tensor], box_lists: list[Boxes]) -> Tensor:
        """
        Args:
            x: (B, C, H, W) feature maps, in the order of `scales`.
            box_lists: B sets of absolute boxes, in pixels of the network input.

        Returns:
            (N, C, output height, output width) for the N boxes of all images in order.
        """
        num_levels = len(self.level_poolers)
        assert isinstance(x, list) and isinstance(box_lists, list), "Arguments to pooler must be lists"
        assert len(x) == num_levels, (
            f"unequal value, num_level_assignments={num_levels}, but x is list of {len(x)} Tensors"
        )
        assert len(box_lists) == x[0].size(0), (
            f"unequal value, x[0] batch dim 0 is {x[0].size(0)}, but box_list has length {len(box_lists)}"
        )
        if len(box_lists) == 0:
            return _pooled_zeros(x[0], x[0], self.output_size)  # no images, so no boxes
        rois = convert_boxes_to_pooler_format(box_lists)
        if num_levels == 1:
            return self.level_poolers[0](x[0], rois)

        levels = assign_boxes_to_levels(
            box_lists, self.min_level, self.max_level, self.canonical_box_size, self.canonical_level
        )
        output = _pooled_zeros(rois, x[0], self.output_size)
        for level, pooler in enumerate(self.level_poolers):
            inds = nonzero_tuple(levels == level)[0]
            output.index_put_((inds,), pooler(x[level], rois[inds]))
        return output


def _level_pooler(pooler_type: str, output_size: tuple[int, int], scale: float, sampling_ratio: int) -> nn.Module:
    if pooler_type in ("ROIAlign", "ROIAlignV2"):
        return ROIAlign(
            output_size, spatial_scale=scale, sampling_ratio=sampling_ratio, aligned=pooler_type == "ROIAlignV2"
        )
    if pooler_type == "ROIPool":
        return RoIPool(output_size, spatial_scale=scale)
    raise ValueError(f"Unknown pooler type: {pooler_type}")
