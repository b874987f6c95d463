"""Mathematics of boxes, as small functions of tensors."""

import torch
from torch import Tensor


def generalized_iou(boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> Tensor:
    """Generalized IoU, differentiable and without waiting for the device. Rezatofighi et al., CVPR 2019.

    Args:
        boxes1, boxes2: (..., 4) xyxy, the second corner not before the first; leading dimensions broadcast.
        eps: added to areas that divide.

    Returns:
        (...) in [-1, 1]; a pair of boxes that are both empty and in the same place gets 0.
    """
    low1, high1, low2, high2 = boxes1[..., :2], boxes1[..., 2:], boxes2[..., :2], boxes2[..., 2:]
    intersection = _area((torch.min(high1, high2) - torch.max(low1, low2)).clamp(min=0))
    hull = _area(torch.max(high1, high2) - torch.min(low1, low2))
    union = _area(high1 - low1) + _area(high2 - low2) - intersection
    return intersection / (union + eps) - (hull - union) / (hull + eps)


def _area(size: Tensor) -> Tensor:
    width, height = size.unbind(-1)  # the gradient of `prod` would count zeros, on the host
    return width * height
