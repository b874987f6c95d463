"""Detections in memory are evaluated as COCO's evaluation does from files."""

import pytest
import torch
from detectron2.structures import Boxes, BoxMode, Instances

from sparsercnn.evaluation.in_memory import average_precision_at_half, evaluate, ground_truth

RECORDS = [
    {"annotations": [{"bbox": [10, 10, 20, 20], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1}]},
    {"annotations": [{"bbox": [0, 0, 30, 30], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}]},
    {"annotations": []},
]


def found(*rows: tuple[list[float], float, int]) -> Instances:
    boxes, scores, classes = (list(column) for column in zip(*rows, strict=True)) if rows else ([], [], [])
    return Instances(
        (64, 64),
        pred_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)),
        scores=torch.tensor(scores),
        pred_classes=torch.tensor(classes, dtype=torch.int64),
    )


def ap50(*detections: Instances) -> float:
    return average_precision_at_half(evaluate(ground_truth(RECORDS, 3), detections))


RIGHT = found(([10, 10, 30, 30], 0.9, 1)), found(([0, 0, 30, 30], 0.8, 0))


def test_all_found():
    assert ap50(*RIGHT, found()) == pytest.approx(100)


def test_nothing_found():
    assert ap50(found(), found(), found()) == 0


def test_a_wrong_box_before_the_right_one_halves_precision_of_its_class():
    assert ap50(*RIGHT, found(([5, 5, 9, 9], 0.95, 1))) == pytest.approx(75)


def test_a_class_that_is_nowhere_does_not_count():
    assert ap50(*RIGHT, found(([5, 5, 9, 9], 0.95, 2))) == pytest.approx(100)


def test_a_shifted_box_counts_from_half_an_overlap():
    shifted = found(([10, 10, 30, 26], 0.9, 1)), found(([0, 12, 30, 42], 0.8, 0))  # IoU 0.8 and 0.43
    assert ap50(*shifted, found()) == pytest.approx(50)
