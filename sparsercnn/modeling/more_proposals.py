"""Learned proposals in another number than were trained."""

import torch
from torch import Tensor


def resize_proposals(boxes: Tensor, features: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """So many proposals, of those that were learned.

    Fewer: the first ones. More: all of them, and extra ones between two that are near each other, because what is alike
    would find the same object twice. Extra proposal e = 0, 1, … lies between a, proposal e mod N, and b, the
    (1 + ⌊e / N⌋)-th nearest to it by the centers of their boxes: two thirds of a and one third of b, the box as the
    feature. (Halfway, two that are each other's nearest would give the same one twice.)

    Args:
        boxes: (N, 4) cxcywh.
        features: (N, d).
        count: wanted number; at most N².

    Returns:
        (count, 4) and (count, d).

    Raises:
        ValueError: more than N² are wanted.
    """
    learned = len(boxes)
    if count > learned**2:
        raise ValueError(f"{learned} learned proposals give at most {learned**2}, not {count}")
    extra = torch.arange(max(0, count - learned), device=boxes.device)
    centers = boxes[:, :2].double()
    distances = torch.cdist(centers, centers).fill_diagonal_(-1)  # each is the nearest to itself, ties or not
    neighbors = distances.argsort(dim=1, stable=True)
    a = extra % learned
    b = neighbors[a, 1 + extra // learned]
    return tuple(torch.cat([x[:count], (2 * x[a] + x[b]) / 3]) for x in (boxes, features))  # type: ignore[return-value]
