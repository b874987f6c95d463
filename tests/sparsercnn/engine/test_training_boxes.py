"""Learned proposals that start from the boxes of the training data."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode
from torch.testing import assert_close

from sparsercnn.engine.build import build_model, prepare_for_training
from sparsercnn.engine.training_boxes import cluster
from sparsercnn.errors import InputError

from ..models import small_config


@pytest.fixture
def config():
    """Ten kinds of boxes, in pictures of different sizes, and one crowd."""
    cfg = small_config()
    cfg.MODEL.SparseRCNN.PROPOSALS = "kmeans"
    cfg.SOLVER.FAST = False
    cfg.DATASETS.TRAIN = ("kinds",)
    records = []
    for size in (100, 200):
        boxes = [[i * size / 10, 0, size / 10, size / 2] for i in range(10)]
        annotations = [{"bbox": box, "bbox_mode": BoxMode.XYWH_ABS} for box in boxes]
        annotations.append({"bbox": [0, 0, size, size], "bbox_mode": BoxMode.XYWH_ABS, "iscrowd": 1})
        records.append({"width": size, "height": size, "annotations": annotations})
    DatasetCatalog.register("kinds", lambda: records)
    yield cfg
    DatasetCatalog.remove("kinds")


def test_proposals_start_on_the_clusters(config):
    model = build_model(config)
    prepare_for_training(config, model)
    boxes = model.init_proposal_boxes.weight.detach()
    expected = torch.tensor([[0.05 + i / 10, 0.25, 0.1, 0.5] for i in range(10)])
    assert_close(boxes[boxes[:, 0].argsort()], expected, rtol=0, atol=1e-6)


def test_too_few_boxes(config):
    config.MODEL.SparseRCNN.NUM_PROPOSALS = 21
    with pytest.raises(InputError, match="DATASETS.TRAIN has 20 boxes, fewer than NUM_PROPOSALS 21; choose 'grid'"):
        prepare_for_training(config, build_model(config))


def test_the_same_seed_gives_the_same():
    boxes = np.random.default_rng(0).random((500, 4))
    assert torch.equal(cluster(boxes, 20, seed=1), cluster(boxes, 20, seed=1))
    assert not torch.equal(cluster(boxes, 20, seed=1), cluster(boxes, 20, seed=2))
