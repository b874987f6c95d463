import json

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from torch import nn

from sparsercnn import load_config
from sparsercnn.evaluation.digest import evaluation_digest


@pytest.fixture
def setting(tmp_path):
    """A config, a model with all kinds of tensors, and a data set in `tmp_path`."""
    (tmp_path / "truth.json").write_text(json.dumps({"images": [], "annotations": []}))
    register_coco_instances("digest_test", {}, str(tmp_path / "truth.json"), "")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1, dtype=torch.bfloat16))
    yield load_config(options=["MODEL.DEVICE", "cpu"]), model
    DatasetCatalog.remove("digest_test")
    MetadataCatalog.remove("digest_test")


CHANGES = {
    "weight": lambda cfg, model, path: model[0].weight.data[0, 0].add_(1e-6),
    "statistics": lambda cfg, model, path: model[1].num_batches_tracked.add_(1),
    "bfloat16": lambda cfg, model, path: model[2].weight.data.mul_(2),
    "model": lambda cfg, model, path: cfg.MODEL.merge_from_list(["MASK_ON", True]),
    "input": lambda cfg, model, path: cfg.INPUT.merge_from_list(["MIN_SIZE_TEST", 17]),
    "detections": lambda cfg, model, path: cfg.TEST.merge_from_list(["DETECTIONS_PER_IMAGE", 7]),
    "data": lambda cfg, model, path: path.write_text(path.read_text() + " "),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_outputs_changes_the_digest(setting, tmp_path, change):
    cfg, model = setting
    before = evaluation_digest(cfg, model, "digest_test")
    assert evaluation_digest(cfg, model, "digest_test", "TTA") != before
    CHANGES[change](cfg, model, tmp_path / "truth.json")
    assert evaluation_digest(cfg, model, "digest_test") != before


def test_what_does_not_change_outputs_does_not(setting):
    cfg, model = setting
    before = evaluation_digest(cfg, model, "digest_test")
    cfg.merge_from_list(["OUTPUT_DIR", "elsewhere", "MODEL.WEIGHTS", "x.pth", "DATALOADER.NUM_WORKERS", 9])
    cfg.freeze()
    assert evaluation_digest(cfg, model, "digest_test") == before
