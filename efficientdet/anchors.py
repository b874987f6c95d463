"""Anchors of EfficientDet: three sizes of three shapes at every cell of every level."""

from collections.abc import Sequence

import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from torch import Tensor

# The shapes are rounded: areas are 1 and 0.98 times the square of the size.
SHAPES = ((1.0, 1.0), (1.4, 0.7), (0.7, 1.4))


class EfficientDetAnchors(DefaultAnchorGenerator):
    """At the middle of each cell, anchors of `num_sizes` sizes within one octave, of every shape.

    Called with a list of feature maps, (B, C, H, W) each, it returns `Boxes` for each: H · W · `num_anchors` absolute
    xyxy, cell by cell in rows, in a cell size by size.

    Args:
        strides: pixels between the cells of each feature map.
        scale: the smallest size of a level in strides; the i-th size is scale · stride · 2^(i / num_sizes).
        num_sizes: sizes at each cell.
        shapes: width and height of an anchor relative to its size.
    """

    def __init__(
        self,
        strides: list[int],
        scale: float = 4.0,
        num_sizes: int = 3,
        shapes: Sequence[tuple[float, float]] = SHAPES,
    ) -> None:
        sizes = [[scale * stride * 2 ** (i / num_sizes) for i in range(num_sizes)] for stride in strides]
        super().__init__(sizes=sizes, aspect_ratios=[shapes], strides=strides)

    def generate_cell_anchors(self, sizes: Sequence[float], aspect_ratios: Sequence[tuple[float, float]]) -> Tensor:  # type: ignore[override]  # shapes in place of ratios
        """Anchors of one cell, centered at the origin.

        Args:
            sizes: in pixels.
            aspect_ratios: width and height relative to the size, in place of the ratio of the base class.

        Returns:
            (len(sizes) * len(aspect_ratios), 4) xyxy in pixels, size by size.
        """
        halves = [(size * width / 2, size * height / 2) for size in sizes for width, height in aspect_ratios]
        return torch.tensor([(-x, -y, x, y) for x, y in halves])
