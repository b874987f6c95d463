"""Detections are right once per object, by class and overlap; the best threshold is that of the best F1."""

import itertools

import pytest
import torch
from detectron2.structures import Boxes, Instances

from sparsercnn.evaluation.matching import best_threshold, match_objects

SIZE = (100, 100)
OBJECT = [10.0, 10.0, 30.0, 30.0]
FAR = [60.0, 60.0, 90.0, 90.0]


def detections(*rows):
    boxes, scores, classes = zip(*rows, strict=True)
    return Instances(
        SIZE,
        pred_boxes=Boxes(torch.tensor(boxes)),
        scores=torch.tensor(scores),
        pred_classes=torch.tensor(classes),
    )


def truth(*rows):
    boxes = torch.tensor([box for box, _ in rows]).reshape(-1, 4)
    classes = torch.tensor([c for _, c in rows], dtype=torch.int64)
    return Instances(SIZE, gt_boxes=Boxes(boxes), gt_classes=classes)


def test_an_object_is_found_once_by_the_best_score():
    matches = match_objects(detections((OBJECT, 0.4, 0), (OBJECT, 0.9, 0), (FAR, 0.8, 0)), truth((OBJECT, 0)))
    assert matches.is_right.tolist() == [False, True, False]
    assert matches.is_duplicate.tolist() == [True, False, False]
    assert matches.is_wrong.tolist() == [True, False, True]
    assert matches.is_found.tolist() == [True]


def test_another_class_finds_nothing():
    matches = match_objects(detections((OBJECT, 0.9, 1)), truth((OBJECT, 0)))
    assert matches.is_wrong.tolist() == [True] and matches.is_found.tolist() == [False]
    assert not matches.is_duplicate.any()


def test_each_of_two_overlapping_objects_is_found():
    shifted = [12.0, 10.0, 32.0, 30.0]
    matches = match_objects(detections((OBJECT, 0.9, 0), (OBJECT, 0.8, 0)), truth((OBJECT, 0), (shifted, 0)))
    assert matches.is_right.all() and matches.is_found.all()


def test_half_an_overlap_is_enough_and_less_is_not():
    half, less = [10.0, 10.0, 30.0, 20.0], [10.0, 10.0, 30.0, 19.9]
    assert match_objects(detections((half, 0.9, 0)), truth((OBJECT, 0))).is_right.all()
    assert match_objects(detections((less, 0.9, 0)), truth((OBJECT, 0))).is_wrong.all()


def test_in_a_crowd_of_its_class_a_detection_does_not_count():
    crowds = truth(([50.0, 50.0, 100.0, 100.0], 0))
    matches = match_objects(detections((FAR, 0.9, 0), (FAR, 0.9, 1), (OBJECT, 0.5, 0)), truth(), crowds)
    assert matches.is_ignored.tolist() == [True, False, False]
    assert matches.is_wrong.tolist() == [False, True, True]


def test_nothing_detected_and_nothing_there():
    none = detections((OBJECT, 0.9, 0))[:0]
    assert match_objects(none, truth((OBJECT, 0))).is_found.tolist() == [False]
    assert len(match_objects(none, truth()).is_right) == 0


@pytest.mark.parametrize("seed", range(5))
def test_no_other_threshold_has_a_better_f1(seed):
    generator = torch.Generator().manual_seed(seed)
    # Rounded, so that several detections have the same score.
    scores = (torch.rand(40, generator=generator) * 20).round() / 20
    is_right = torch.rand(40, generator=generator) < scores
    num_objects = int(is_right.sum()) + 5

    def f1(threshold):
        shown = scores > threshold
        return 2 * int((shown & is_right).sum()) / (int(shown.sum()) + num_objects)

    best = best_threshold(scores, is_right, num_objects)
    distinct = scores.unique().tolist()
    others = [-1.0, *((a + b) / 2 for a, b in itertools.pairwise(distinct)), 2.0]
    assert f1(best) == max(f1(t) for t in others)


def test_without_a_right_detection_the_threshold_is_one_half():
    assert best_threshold(torch.tensor([0.2, 0.9]), torch.tensor([False, False]), 3) == 0.5
    assert best_threshold(torch.zeros(0), torch.zeros(0, dtype=torch.bool), 3) == 0.5
