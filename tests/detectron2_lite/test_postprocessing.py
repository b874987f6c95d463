"""Detections from the network's resolution to the user's."""

import pytest
import torch
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances


def detections(*boxes: list[float], field: str = "pred_boxes") -> Instances:
    result = Instances((100, 200), scores=torch.arange(len(boxes)).float())
    result.set(field, Boxes(torch.tensor(boxes)))
    return result


def test_boxes_are_scaled_in_each_direction():
    out = detector_postprocess(detections([10.0, 20, 30, 40]), 300, 400)
    assert out.image_size == (300, 400)
    assert out.pred_boxes.tensor.tolist() == [[20, 60, 60, 120]]


def test_boxes_are_clipped_and_empty_ones_dropped_with_their_fields():
    out = detector_postprocess(detections([-5.0, 50, 300, 120], [210, 0, 220, 10], [5, 5, 9, 9]), 50, 100)
    assert out.pred_boxes.tensor.tolist() == [[0, 25, 100, 50], [2.5, 2.5, 4.5, 4.5]]
    assert out.scores.tolist() == [0, 2]


def test_proposals_are_scaled_as_well():
    out = detector_postprocess(detections([10.0, 20, 30, 40], field="proposal_boxes"), 200, 400)
    assert out.proposal_boxes.tensor.tolist() == [[20, 40, 60, 80]]


def test_results_need_boxes():
    with pytest.raises(AssertionError, match="must contain boxes"):
        detector_postprocess(Instances((10, 10), scores=torch.zeros(1)), 10, 10)
