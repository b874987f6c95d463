"""Every config of a neck loads, and gives the levels that its head reads, with the head's channels."""

from pathlib import Path

import pytest
from detectron2.modeling import build_backbone

from necks import NECK_REGISTRY
from sparsercnn import load_config

FOLDER = Path(__file__).parents[2] / "configs" / "necks"
CONFIGS = sorted(path.stem for path in FOLDER.glob("*.yaml") if not path.stem.startswith("Base"))


def load(name):
    return load_config(FOLDER / f"{name}.yaml")


def test_every_neck_has_a_config():
    assert {name for name, _ in NECK_REGISTRY} <= {load(name).MODEL.NECK.NAME for name in CONFIGS}


@pytest.mark.parametrize("name", CONFIGS)
def test_head_fits_the_neck(name):
    cfg = load(name)
    cfg.MODEL.TIMM.PRETRAINED = False
    backbone = build_backbone(cfg)
    shapes = backbone.output_shape()
    # All of them, because a level that nobody reads leaves parameters without gradient.
    assert list(shapes) == cfg.MODEL.ROI_HEADS.IN_FEATURES
    assert {shape.channels for shape in shapes.values()} == {cfg.MODEL.SparseRCNN.HIDDEN_DIM}
    assert type(backbone.neck).__name__ == cfg.MODEL.NECK.NAME


def test_runs_do_not_overwrite_each_other():
    folders = [load(name).OUTPUT_DIR for name in CONFIGS]
    assert len(set(folders)) == len(folders)
