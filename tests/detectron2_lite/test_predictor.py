"""`DefaultPredictor`: weights, preprocessing and output of a config's model."""

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultPredictor
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn


@META_ARCH_REGISTRY.register()
class EchoForPredictorTests(nn.Module):
    """Returns its input, and one weight."""

    def __init__(self, cfg):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, batched_inputs):
        assert not self.training and not torch.is_grad_enabled()
        return [{**x, "weight": self.weight.item()} for x in batched_inputs]


@pytest.fixture
def cfg(tmp_path):
    torch.save({"model": {"weight": torch.full((1,), 3.0)}}, tmp_path / "weights.pth")
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "EchoForPredictorTests"
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = str(tmp_path / "weights.pth")
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 20, 50
    cfg.DATASETS.TEST = ("predictor_tests",)
    return cfg


@pytest.mark.parametrize(("size", "resized"), [((40, 60), (20, 30)), ((40, 200), (10, 50)), ((10, 10), (20, 20))])
def test_images_are_resized_and_their_size_is_told(cfg, size, resized):
    output = DefaultPredictor(cfg)(np.zeros((*size, 3), dtype=np.uint8))
    assert output["image"].shape == (3, *resized)
    assert output["image"].dtype == torch.float32
    assert (output["height"], output["width"]) == size


@pytest.mark.parametrize(("channel_order", "expected"), [("BGR", [1, 2, 3]), ("RGB", [3, 2, 1])])
def test_images_come_in_bgr(cfg, channel_order, expected):
    cfg.INPUT.FORMAT = channel_order
    image = np.tile(np.array([1, 2, 3], dtype=np.uint8), (20, 20, 1))
    assert DefaultPredictor(cfg)(image)["image"][:, 5, 5].tolist() == expected


def test_other_channel_orders_are_refused(cfg):
    cfg.INPUT.FORMAT = "L"
    with pytest.raises(AssertionError):
        DefaultPredictor(cfg)


def test_weights_and_metadata(cfg):
    MetadataCatalog.get("predictor_tests").set(thing_classes=["one"])
    predictor = DefaultPredictor(cfg)
    assert predictor(np.zeros((20, 20, 3), dtype=np.uint8))["weight"] == 3.0
    assert predictor.metadata.thing_classes == ["one"]
    assert not predictor.model.training
