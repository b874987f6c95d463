"""Where learned proposals start: on the whole image, or spread over it."""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def whole_image(count: int) -> Tensor:
    """(count, 4) cxcywh in [0, 1]: all on the whole image, as published (Sun et al., Sparse R-CNN, CVPR 2021)."""
    return torch.tensor([0.5, 0.5, 1.0, 1.0]).repeat(count, 1)


def grid(count: int) -> Tensor:
    """(count, 4) cxcywh in [0, 1]: side by side in rows from the top left, and together on the whole image.

    Sun et al., Sparse R-CNN, CVPR 2021, table 6. The last row may have fewer and wider boxes.
    """
    rows = max(1, math.isqrt(count))
    boxes = []
    for row in range(rows):
        columns = count // rows + (row < count % rows)
        boxes += [[(x + 0.5) / columns, (row + 0.5) / rows, 1 / columns, 1 / rows] for x in range(columns)]
    return torch.tensor(boxes)


# k-means needs the training data: until training starts from them (or weights are loaded) its boxes are the grid's.
INITIAL_BOXES: dict[str, Callable[[int], Tensor]] = {"image": whole_image, "grid": grid, "kmeans": grid}
