"""Second boxes on an object, brought to the end of the detections."""

import torch
from torch import Tensor

from .boxes import paired_iou


def sink_repeats(boxes: Tensor, scores: Tensor, classes: Tensor, overlap: float) -> tuple[Tensor, Tensor, Tensor]:
    """Give score 0 to each detection that overlaps a better one of its class, be that one a repeat itself or not.

    So the number of operations does not depend on the data (Fast NMS: Bolya et al., YOLACT, ICCV 2019, section 4.2).

    Args:
        boxes: (B, N, 4) xyxy, best first.
        scores: (B, N).
        classes: (B, N) int64.
        overlap: largest IoU of two detections of a class that both keep their scores.

    Returns:
        The same, best first again.
    """
    overlaps = paired_iou(boxes[:, :, None], boxes[:, None]).triu(diagonal=1)  # of better ones (rows) with each
    of_same_class = classes[:, :, None] == classes[:, None]
    repeats = ((overlaps > overlap) & of_same_class).any(1)
    # Not `sort`, whose stable form ONNX has no operator for.
    order = (scores - repeats.to(scores.dtype)).topk(scores.shape[1]).indices
    scores = torch.where(repeats, 0.0, scores).gather(1, order)
    return boxes.gather(1, order[..., None].expand(-1, -1, 4)), scores, classes.gather(1, order)
