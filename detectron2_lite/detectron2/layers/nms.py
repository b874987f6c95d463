"""Non-maximum suppression over torchvision."""

from torch import Tensor
from torchvision import ops
from torchvision.ops import nms

__all__ = ["batched_nms", "nms"]


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """Non-maximum suppression within each group of boxes, never across groups.

    Args:
        boxes: (N, 4) absolute xyxy.
        scores: (N,).
        idxs: (N,) group of each box, usually its class.
        iou_threshold: a box that overlaps a better one of its group by more than this is dropped.

    Returns:
        (K,) int64 indices of the boxes kept, best score first.
    """
    assert boxes.shape[-1] == 4
    # Half precision cannot hold the coordinate offsets that keep the groups apart.
    return ops.batched_nms(boxes.float(), scores, idxs, iou_threshold)
