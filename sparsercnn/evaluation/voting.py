"""Soft voting: detections of one object by several views become their average, and doubles fade instead of vanishing.

As in the test-time augmentation of ATSS (Zhang et al., CVPR 2020) and of cvpods, which Sparse R-CNN published.
"""

import torch
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import Tensor

# Both as published.
SAME_OBJECT_IOU = 0.65
LOWEST_FADED_SCORE = 0.05


def soft_vote(boxes: Tensor, scores: Tensor, min_iou: float = SAME_OBJECT_IOU) -> tuple[Tensor, Tensor]:
    """Merge the detections of one class.

    Groups form from the best detection down: it and all that overlap it by an IoU of `min_iou` or more and are in no
    group yet. A group becomes its mean box, weighted by score, with its best score. Its members other than the best
    stay too, as they were, with score · (1 − IoU with the best), if that is at least 0.05.

    Args:
        boxes: (N, 4) absolute xyxy.
        scores: (N,) positive.
        min_iou: above which two boxes show the same object.

    Returns:
        Boxes (M, 4) and scores (M,), in the order in which their groups formed.
    """
    order = scores.argsort(descending=True)
    boxes, scores = boxes[order], scores[order]
    voted_boxes, voted_scores = [boxes[:0]], [scores[:0]]
    while len(scores):
        iou = pairwise_iou(Boxes(boxes[:1]), Boxes(boxes))[0]
        in_group = iou >= min_iou
        in_group[0] = True  # also where it has no area, and therefore no overlap with itself
        group, weights = boxes[in_group], scores[in_group]
        if len(weights) == 1:
            voted_boxes.append(group)
            voted_scores.append(weights)
        else:
            faded = weights * (1 - iou[in_group])
            kept = faded >= LOWEST_FADED_SCORE
            mean = (weights[:, None] * group).sum(0, keepdim=True) / weights.sum()
            voted_boxes += [mean, group[kept]]
            voted_scores += [weights[:1], faded[kept]]
        boxes, scores = boxes[~in_group], scores[~in_group]
    return torch.cat(voted_boxes), torch.cat(voted_scores)


def soft_vote_by_class(detections: Instances) -> Instances:
    """Merge the detections of each class by `soft_vote`.

    Args:
        detections: of one image, with `pred_boxes`, `scores` and `pred_classes`.

    Returns:
        The same fields, best first.
    """
    merged = []
    for label in detections.pred_classes.unique().tolist():
        of_class = detections[detections.pred_classes == label]
        boxes, scores = soft_vote(of_class.pred_boxes.tensor, of_class.scores)
        classes = torch.full_like(scores, label, dtype=torch.int64)
        merged.append(Instances(detections.image_size, pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes))
    if not merged:
        return detections
    result = Instances.cat(merged)
    return result[result.scores.argsort(descending=True)]
