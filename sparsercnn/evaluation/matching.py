"""Which detections are right at a threshold, which objects they miss, and the threshold that balances the two best."""

from dataclasses import dataclass

import torch
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import Tensor

IOU_OF_A_FIND = 0.5


@dataclass
class Matches:
    """How the detections of one image meet its objects.

    Attributes:
        is_right: (N,) bool, the detection is an object's, by class and overlap, and the best-scoring one of it.
        is_duplicate: (N,) bool, the detection overlaps an object of its class that a better-scoring one has found.
        is_ignored: (N,) bool, the detection found nothing, but lies in a crowd of its class.
        is_found: (M,) bool, a detection found the object.
    """

    is_right: Tensor
    is_duplicate: Tensor
    is_ignored: Tensor
    is_found: Tensor

    @property
    def is_wrong(self) -> Tensor:
        """(N,) bool, the detection is neither an object's nor in a crowd; duplicates are wrong too."""
        return ~(self.is_right | self.is_ignored)


def match_objects(detections: Instances, objects: Instances, crowds: Instances | None = None) -> Matches:
    """Give each detection, best score first, the object of its class that it overlaps most and that is still free.

    That is how COCO counts at IoU 0.5. (Lin et al., Microsoft COCO, ECCV 2014.)

    Args:
        detections: `pred_boxes` (N, 4) absolute xyxy, `scores` and `pred_classes` (N,).
        objects: `gt_boxes` (M, 4) absolute xyxy and `gt_classes` (M,), without crowds.
        crowds: areas, in the same fields, in which what is detected counts neither as right nor as wrong.
    """
    overlaps = pairwise_iou(detections.pred_boxes, objects.gt_boxes)
    overlaps[detections.pred_classes[:, None] != objects.gt_classes[None]] = 0
    is_right, is_duplicate = (torch.zeros(len(detections), dtype=torch.bool) for _ in range(2))
    is_found = torch.zeros(len(objects), dtype=torch.bool)
    order = detections.scores.argsort(descending=True, stable=True)
    on_object = (overlaps >= IOU_OF_A_FIND).any(1)
    for i in order[on_object[order]].tolist():
        best, j = overlaps[i].masked_fill(is_found, 0).max(0)
        if best >= IOU_OF_A_FIND:
            is_right[i] = is_found[j] = True
        else:
            is_duplicate[i] = True
    return Matches(is_right, is_duplicate, _in_crowd(detections, crowds) & ~is_right, is_found)


def _in_crowd(detections: Instances, crowds: Instances | None) -> Tensor:
    """(N,) bool: half of the detection's area or more lies in a crowd of its class."""
    if crowds is None or not len(crowds) or not len(detections):
        return torch.zeros(len(detections), dtype=torch.bool)
    boxes, areas = detections.pred_boxes.tensor, crowds.gt_boxes.tensor
    shared = torch.minimum(boxes[:, None, 2:], areas[:, 2:]) - torch.maximum(boxes[:, None, :2], areas[:, :2])
    share = shared.clamp(min=0).prod(-1) / Boxes(boxes).area().clamp(min=1e-9)[:, None]
    return ((share >= IOU_OF_A_FIND) & (detections.pred_classes[:, None] == crowds.gt_classes)).any(1)


def best_threshold(scores: Tensor, is_right: Tensor, num_objects: int) -> float:
    """The score over which to show detections so that F1, twice the right over the shown and the objects, is best.

    Args:
        scores: (N,) of the detections of all images, between 0 and 1.
        is_right: (N,) bool of them; see `Matches`. Leave out those that are ignored.
        num_objects: in all images.

    Returns:
        Half way between the last score that is to be shown and the next; 0.5 if no detection is right.
    """
    scores, order = scores.double().sort(descending=True, stable=True)
    right = is_right[order].cumsum(0)
    if not len(scores) or not right[-1]:
        return 0.5
    f1 = 2 * right / (torch.arange(1, len(scores) + 1) + num_objects)
    # Detections of equal score can only be shown together.
    f1[:-1][scores[:-1] == scores[1:]] = 0
    last = int(f1.argmax())
    following = float(scores[last + 1]) if last + 1 < len(scores) else 0.0
    return (float(scores[last]) + following) / 2
