"""Predictions that are no numbers are counted, reported and taken out; the others stay as they are."""

import logging

import pytest
import torch
from detectron2.utils import logger as detectron2_logger

from sparsercnn import prepare_for_inference
from sparsercnn.modeling.finite import take_out_broken

from ..models import image, small_model


@pytest.fixture(autouse=True)
def nothing_was_logged_before(monkeypatch):
    monkeypatch.setattr(detectron2_logger, "_LOG_COUNTER", type(detectron2_logger._LOG_COUNTER)())


def test_only_broken_predictions_change():
    logits, boxes = torch.randn(2, 5, 3), torch.rand(2, 5, 4)
    expected_logits, expected_boxes = logits.clone(), boxes.clone()
    for tensor, where in ((boxes, (0, 1, 2)), (boxes, (1, 4, 0)), (logits, (1, 2, 1))):
        tensor[where] = torch.nan
    boxes[0, 3, 3], logits[0, 0, 0] = torch.inf, torch.inf
    broken = [(0, 1), (0, 3), (1, 2), (1, 4)]
    for where in broken:
        expected_logits[where], expected_boxes[where] = torch.finfo(torch.float32).min, 0
    expected_logits[0, 0, 0] = torch.inf
    result_logits, result_boxes, count = take_out_broken(logits, boxes)
    assert torch.equal(result_logits, expected_logits) and torch.equal(result_boxes, expected_boxes)
    assert count == len(broken)


@pytest.mark.parametrize("use_focal", [True, False])
@pytest.mark.parametrize("prepared", [False, True])
def test_a_detector_reports_broken_boxes_and_keeps_the_others(use_focal, prepared, caplog):
    model = small_model(use_focal)
    with torch.no_grad():
        # An early stage breaks: that a late one would show it is what the check relies on.
        model.init_proposal_boxes.weight[3] = torch.inf
        model.init_proposal_boxes.weight[7, 0] = torch.nan
    inputs = [{"image": image((64, 96))}, {"image": image((64, 64))}]
    with caplog.at_level(logging.WARNING), torch.no_grad():
        results = (prepare_for_inference(model) if prepared else model)(inputs)
    for result in results:
        boxes = result["instances"].pred_boxes.tensor
        assert len(boxes) and boxes.isfinite().all()
    [warning] = [record.message for record in caplog.records if "infinite or NaN" in record.message]
    assert warning.startswith("4 of 20 predicted boxes")
    for _ in range(5):
        model(inputs)
    assert len([r for r in caplog.records if "infinite or NaN" in r.message]) == 3
