"""Detections beside the truth: what is right, what is wrong and what was missed, each in a stroke of its own."""

import numpy as np
from detectron2.structures import Instances

from ..evaluation.matching import Matches
from .canvas import class_color, draw_boxes, enlarge

RIGHT, WRONG, MISSED = "-", "--", ":"
"""matplotlib's line styles of a right detection, a wrong one, and an object that no detection found."""

LEGEND = "solid: right · dashed: wrong · dotted: missed"


def draw_comparison(
    picture: np.ndarray, detections: Instances, objects: Instances, matches: Matches, class_names: list[str]
) -> np.ndarray:
    """Draw detections and the objects that they miss, in the colors of their classes.

    Args:
        picture: (H, W, 3) uint8 RGB.
        detections: N, with `pred_boxes` absolute xyxy, `scores` and `pred_classes`.
        objects: M, with `gt_boxes` absolute xyxy and `gt_classes`.
        matches: of these detections and objects.
        class_names: of the classes, for labels.

    Returns:
        The picture, enlarged if labels need that. The label of a detection is its class and score, that of a wrong one
        ends in "wrong" or, on an object that another detection has found, in "twice".
    """
    labels = []
    for i, (c, score) in enumerate(zip(detections.pred_classes.tolist(), detections.scores.tolist(), strict=True)):
        fault = " twice" if matches.is_duplicate[i] else " wrong" if matches.is_wrong[i] else ""
        labels.append(f"{class_names[c]} {score:.0%}{fault}")
    styles = [WRONG if wrong else RIGHT for wrong in matches.is_wrong.tolist()]
    missed = objects[~matches.is_found]
    labels += [f"{class_names[c]} missed" for c in missed.gt_classes.tolist()]
    styles += [MISSED] * len(missed)
    classes = [*detections.pred_classes.tolist(), *missed.gt_classes.tolist()]
    boxes = np.concatenate([detections.pred_boxes.tensor.numpy(), missed.gt_boxes.tensor.numpy()])
    picture, factor = enlarge(picture)
    return draw_boxes(picture, factor * boxes, labels, [class_color(c) for c in classes], styles)
