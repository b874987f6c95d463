"""Non-maximum suppression by class, hard and soft, of the best detections of an image.

Bodla et al., Soft-NMS: Improving Object Detection With One Line of Code, ICCV 2017.
"""

from collections.abc import Callable

import torch
from detectron2.layers import batched_nms
from detectron2.structures import Boxes, pairwise_iou
from torch import Tensor
from torchvision.ops import nms

Suppression = Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]
"""From boxes (N, 4) xyxy, scores (N,), classes (N,) and a limit to the rows that stay, best first, and their scores."""

# What a score must exceed to be a detection after it was lowered.
SMALLEST_SOFT_SCORE = 0.001


def hard_nms(
    boxes: Tensor, scores: Tensor, classes: Tensor, limit: int, threshold: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Drop every detection that overlaps a better one of its class by more than `threshold` (IoU).

    Args:
        boxes: (N, 4) xyxy.
        scores: (N,).
        classes: (N,).
        limit: most detections to keep.
        threshold: see above.

    Returns:
        Rows of the detections that stay, best first, and their scores.
    """
    keep = batched_nms(boxes, scores, classes, threshold)[:limit]
    return keep, scores[keep]


def soft_nms(boxes: Tensor, scores: Tensor, classes: Tensor, limit: int, sigma: float = 0.5) -> tuple[Tensor, Tensor]:
    """Take the best detection, multiply the scores of its class by exp(−IoU² / sigma), and again.

    Args:
        boxes: (N, 4) xyxy.
        scores: (N,).
        classes: (N,).
        limit: most detections to take.
        sigma: see above; the smaller, the more a score is lowered.

    Returns:
        Rows of the detections taken, best first, and their lowered scores, all above 0.001.
    """
    remaining = scores.clone()
    rows, taken = [], []
    for _ in range(min(limit, len(scores))):
        score, row = remaining.max(dim=0)
        rows.append(row)
        taken.append(score)
        overlaps = pairwise_iou(Boxes(boxes[row][None]), Boxes(boxes))[0] * (classes == classes[row])
        remaining = remaining * torch.exp(-(overlaps**2) / sigma)
        remaining[row] = -1.0
    if not rows:
        return torch.zeros(0, dtype=torch.int64, device=scores.device), scores
    soft_scores = torch.stack(taken)
    # They fall, because no score is ever raised.
    count = int((soft_scores > SMALLEST_SOFT_SCORE).sum())
    return torch.stack(rows)[:count], soft_scores[:count]


def batch_nms(
    boxes: Tensor, scores: Tensor, classes: Tensor, limit: int, threshold: float, side: int, num_classes: int
) -> tuple[Tensor, Tensor]:
    """`hard_nms` of several images at once, with results whose shapes do not depend on the data.

    Boxes of different images and classes are moved apart. Those that leave the image by more than its side count as if
    they ended there.

    Args:
        boxes: (B, N, 4) absolute xyxy.
        scores: (B, N), above 0.
        classes: (B, N).
        limit: detections to return of each image, not more than N.
        threshold: see `hard_nms`.
        side: the longer one of the images, in pixels.
        num_classes: how many classes there are.

    Returns:
        Rows (B, limit), best first, and their scores (B, limit), 0 where fewer detections stay.
    """
    image = torch.arange(boxes.shape[0], device=boxes.device)[:, None]
    place = (image * num_classes + classes) * (3 * side)
    apart = boxes.clamp(min=-side, max=2 * side) + place[..., None]
    keep = nms(apart.flatten(0, 1), scores.flatten(), threshold)
    stays = torch.zeros_like(scores, dtype=torch.bool).flatten().index_fill(0, keep, True).unflatten(0, scores.shape)
    best, rows = torch.where(stays, scores, 0.0).topk(limit)
    return rows, best
