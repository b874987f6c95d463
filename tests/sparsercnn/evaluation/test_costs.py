"""Costs by part, against those of layers that can be counted by hand."""

import pytest
import torch
from detectron2.modeling import build_model

from sparsercnn.evaluation.costs import count_gmacs, count_parameters

from ..models import small_config


def test_counts_equal_those_of_the_layers():
    cfg = small_config()
    cfg.MODEL.FPN.IN_FEATURES = ["res5"]
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p5"]
    model = build_model(cfg)
    lateral, output = 512 * 32, 9 * 32 * 32
    assert count_parameters(model)["neck"] == pytest.approx((lateral + output + 2 * 32) / 1e6)
    gmacs = count_gmacs(model, torch.zeros(3, 64, 64))
    assert gmacs["neck"] == pytest.approx(2 * 2 * (lateral + output) / 1e9)
    assert gmacs["total"] == pytest.approx(gmacs["bottom-up"] + gmacs["neck"] + gmacs["head"])
