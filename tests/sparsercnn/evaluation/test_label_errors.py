"""A confident model's disagreements with labels, most likely errors first."""

import torch
from detectron2.structures import Boxes, BoxMode, Instances

from sparsercnn.evaluation.label_errors import find_label_errors
from sparsercnn.evaluation.results import image_result

A, B, C = [10.0, 10.0, 30.0, 30.0], [50.0, 50.0, 80.0, 80.0], [60.0, 5.0, 90.0, 25.0]


def result(labels, found):
    annotations = [{"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": c} for box, c in labels]
    boxes, scores, classes = zip(*found, strict=True) if found else ((), (), ())
    detections = Instances(
        (100, 100),
        pred_boxes=Boxes(torch.tensor(boxes).reshape(-1, 4)),
        scores=torch.tensor(scores),
        pred_classes=torch.tensor(classes, dtype=torch.int64),
    )
    return image_result({"height": 100, "width": 100, "file_name": "x", "annotations": annotations}, detections)


def kinds(*results):
    return [(e.kind, round(e.likelihood, 2), e.label, e.found) for e in find_label_errors(results)]


def test_a_model_that_agrees_finds_nothing():
    assert kinds(result([(A, 0), (B, 1)], [(A, 0.9, 0), (B, 0.8, 1), (C, 0.4, 0)])) == []
    assert kinds(result([], [])) == []


def test_each_kind_of_error_is_told_and_the_surest_come_first():
    off = [10.0, 10.0, 30.0, 18.5]
    errors = kinds(
        result([(A, 0)], [(A, 0.7, 1)]),
        result([(A, 0)], [(A, 0.9, 0), (C, 0.95, 1)]),
        result([(A, 0), (B, 1)], [(A, 0.9, 0)]),
        result([(A, 0)], [(off, 0.8, 0)]),
    )
    assert errors == [
        ("overlooked", 0.95, None, 1),
        ("other class", 0.7, 0, 1),
        ("nothing there", 0.5, 1, None),
        ("box off", 0.46, 0, 0),
    ]


def test_an_object_of_which_the_model_sees_both_classes_is_no_error():
    assert kinds(result([(A, 0)], [(A, 0.9, 1), (A, 0.6, 0)])) == []


def test_an_overlooked_object_that_is_found_twice_counts_once():
    near = [61.0, 5.0, 91.0, 25.0]
    assert kinds(result([], [(C, 0.9, 1), (near, 0.8, 1), (A, 0.7, 0)])) == [
        ("overlooked", 0.9, None, 1),
        ("overlooked", 0.7, None, 0),
    ]
