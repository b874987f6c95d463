"""Mathematics of boxes, as small functions of tensors."""

from collections.abc import Sequence

import torch
from torch import Tensor


def generalized_iou(boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> Tensor:
    """Generalized IoU: I / U − (C − U) / C, where C is the smallest box around both. Rezatofighi et al., CVPR 2019.

    Args:
        boxes1, boxes2: (..., 4) xyxy, the second corner not before the first; leading dimensions broadcast.
        eps: added to both denominators, so that empty boxes do not divide by zero.

    Returns:
        (...) in [-1, 1]; a pair of boxes that are both empty and in the same place gets 0.
    """
    low1, high1, low2, high2 = boxes1[..., :2], boxes1[..., 2:], boxes2[..., :2], boxes2[..., 2:]
    intersection = _area((torch.min(high1, high2) - torch.max(low1, low2)).clamp(min=0))
    hull = _area(torch.max(high1, high2) - torch.min(low1, low2))
    union = _area(high1 - low1) + _area(high2 - low2) - intersection
    return intersection / (union + eps) - (hull - union) / (hull + eps)


def paired_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """IoU of (..., 4) xyxy boxes, pair by pair; leading dimensions broadcast. A pair of empty boxes gets 0."""
    low, high = torch.max(boxes1[..., :2], boxes2[..., :2]), torch.min(boxes1[..., 2:], boxes2[..., 2:])
    intersection = _area((high - low).clamp(min=0))
    union = _area(boxes1[..., 2:] - boxes1[..., :2]) + _area(boxes2[..., 2:] - boxes2[..., :2]) - intersection
    return intersection / union.clamp(min=1e-7)


def image_whwh(sizes: Sequence[tuple[int, int]] | Tensor, like: Tensor) -> Tensor:
    """The size by which the xyxy coordinates of a picture's boxes are normalized.

    Args:
        sizes: (height, width) of each of B images, as pairs or as a (B, 2) tensor.
        like: gives type and device; the host does not wait until the sizes are there.

    Returns:
        (B, 4) width, height, width, height.
    """
    if isinstance(sizes, Tensor):
        return sizes[:, [1, 0, 1, 0]].to(like)
    return torch.tensor([(w, h, w, h) for h, w in sizes]).to(like, non_blocking=True)


def _area(size: Tensor) -> Tensor:
    width, height = size.unbind(-1)  # the gradient of `prod` would count zeros, on the host
    return width * height
