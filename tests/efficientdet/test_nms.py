"""Hard and soft suppression by class."""

import math

import pytest
import torch

from efficientdet.nms import hard_nms, soft_nms

# The second overlaps the first with an IoU of 0.6, the third lies elsewhere, the fourth is the first in another class.
BOXES = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 6], [50, 50, 60, 60], [0, 0, 10, 10]])
SCORES = torch.tensor([0.9, 0.8, 0.5, 0.7])
CLASSES = torch.tensor([0, 0, 0, 1])


def test_hard():
    rows, scores = hard_nms(BOXES, SCORES, CLASSES, limit=10)
    assert rows.tolist() == [0, 3, 2] and scores.tolist() == pytest.approx([0.9, 0.7, 0.5])
    assert hard_nms(BOXES, SCORES, CLASSES, limit=10, threshold=0.7)[0].tolist() == [0, 1, 3, 2]
    assert hard_nms(BOXES, SCORES, CLASSES, limit=2)[0].tolist() == [0, 3]


def test_soft():
    rows, scores = soft_nms(BOXES, SCORES, CLASSES, limit=10)
    assert rows.tolist() == [0, 3, 2, 1]
    assert scores.tolist() == pytest.approx([0.9, 0.7, 0.5, 0.8 * math.exp(-(0.6**2) / 0.5)])
    assert soft_nms(BOXES, SCORES, CLASSES, limit=2)[0].tolist() == [0, 3]
    assert soft_nms(BOXES, SCORES, CLASSES, limit=10, sigma=100.0)[0].tolist() == [0, 1, 3, 2]


def test_soft_drops_what_fades_away():
    same = BOXES[:1].expand(3, 4)
    rows, scores = soft_nms(same, torch.tensor([0.9, 0.5, 0.006]), torch.zeros(3), limit=10)
    assert rows.tolist() == [0, 1] and scores.tolist() == pytest.approx([0.9, 0.5 * math.exp(-2)])


def test_boxes_without_area_suppress_nothing():
    boxes = torch.zeros(2, 4)
    rows, scores = soft_nms(boxes, torch.tensor([0.4, 0.3]), torch.zeros(2), limit=10)
    assert rows.tolist() == [0, 1] and scores.tolist() == pytest.approx([0.4, 0.3])


@pytest.mark.parametrize("nms", [hard_nms, soft_nms])
def test_nothing_stays_nothing(nms):
    rows, scores = nms(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0), limit=10)
    assert len(rows) == len(scores) == 0


def test_soft_equals_effdet():
    theirs = pytest.importorskip("effdet.soft_nms", reason="effdet, which the results are compared with, is missing")
    torch.manual_seed(0)
    boxes = torch.rand(200, 4) * 40
    boxes[:, 2:] += boxes[:, :2]
    scores, classes = torch.rand(200), torch.randint(3, (200,))
    expected_rows, expected_scores = theirs.batched_soft_nms(boxes, scores, classes, sigma=0.5)
    rows, found = soft_nms(boxes, scores, classes, limit=50)
    assert rows.tolist() == expected_rows[:50].tolist()
    torch.testing.assert_close(found, expected_scores[:50], rtol=0, atol=1e-4)
