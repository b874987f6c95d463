"""What training says of levels: counts by hand, with any routing; and warnings of exactly what gets no gradient."""

import logging

import numpy as np
import pytest
import torch
from detectron2.structures import BoxMode

from sparsercnn import load_config
from sparsercnn.engine import build_model
from sparsercnn.engine import level_report as report

NAMES = ["p2", "p3", "p4", "p5"]


def record(width: int, height: int, *sizes: tuple[float, float], crowd: bool = False) -> dict:
    """An image with boxes of these widths and heights."""
    annotations = [
        {"bbox": [1.0, 2.0, w, h], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "iscrowd": int(crowd)}
        for w, h in sizes
    ]
    return {"width": width, "height": height, "annotations": annotations}


def config(*options: object):
    common = [
        "MODEL.META_ARCHITECTURE",
        "SparseRCNN",
        "MODEL.DEVICE",
        "cpu",
        "MODEL.BACKBONE.NAME",
        "build_neck_backbone",
    ]
    common += ["MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.RESNETS.STEM_OUT_CHANNELS", 8]
    common += ["MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"], "MODEL.BACKBONE.FREEZE_AT", 0]
    common += ["MODEL.ROI_HEADS.IN_FEATURES", NAMES, "MODEL.NECK.OUT_CHANNELS", 16]
    common += [f"MODEL.SparseRCNN.{key}" if isinstance(key, str) else key for key in SMALL]
    common += ["INPUT.MIN_SIZE_TRAIN", (320,), "INPUT.MAX_SIZE_TRAIN", 640]
    return load_config(None, [*common, *options])


SMALL = ["HIDDEN_DIM", 16, "NHEADS", 2, "NUM_HEADS", 1, "DIM_FEEDFORWARD", 16, "DIM_DYNAMIC", 4, "NUM_PROPOSALS", 5]


def said(caplog, cfg, dataset) -> tuple[list[str], list[str]]:
    """What was logged as information and as warnings."""
    torch.manual_seed(0)
    model = build_model(cfg)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    with caplog.at_level(logging.INFO, logger=report.__name__):
        report.report_levels(cfg, model, dataset)
    assert model.backbone.training and all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    own = [r for r in caplog.records if r.name == report.__name__]
    return tuple([r.message for r in own if r.levelno == level] for level in (logging.INFO, logging.WARNING))


def test_sizes_follow_the_resize_rule():
    dataset = [
        record(100, 50, (10, 20)),  # the shorter side becomes 200
        record(1000, 100, (10, 20)),  # the longer side may become 400 only
        record(200, 300, (10, 20), crowd=True),
        {"width": 10, "height": 10},
    ]
    sizes = report.training_sizes(dataset, [200], 400)
    assert sorted(map(tuple, sizes.tolist())) == [(4, 8), (40, 80)]
    assert report.training_sizes(dataset[:1], [0], 400).tolist() == [[10, 20]]


def test_several_training_sizes_take_turns():
    sizes = report.training_sizes([record(100, 100, (10, 10))] * 30, [100, 200, 300], 1000)
    assert {tuple(size): count for size, count in zip(*np.unique(sizes, axis=0, return_counts=True), strict=True)} == {
        (10, 10): 10,
        (20, 20): 10,
        (30, 30): 10,
    }


def test_a_large_data_set_is_sampled(monkeypatch, caplog):
    monkeypatch.setattr(report, "MAX_BOXES", 20)

    class Dataset(list):
        read = 0

        def __getitem__(self, index):
            self.read += 1
            return super().__getitem__(index)

    dataset = Dataset([record(320, 320, (30, 30), (30, 30))] * 1000)
    (line,), _ = said(caplog, config(), dataset)
    assert "20 annotated boxes, a random sample," in line and dataset.read < 20


def test_shares_and_what_learns_nothing(caplog):
    # Boxes of 30 and 150 pixels; learned proposals start on the whole image, 320 pixels, which reads p4.
    dataset = [record(320, 320, *[(30, 30)] * 15, (150, 150))]
    (line,), (warning,) = said(caplog, config("MODEL.NECK.NAME", "SSD"), dataset)
    assert line == "Levels that 16 annotated boxes read at the training size: p2 94 %, p3 6.2 %, p4 0 %, p5 0 %."
    assert "nothing reads p5" in warning and "res5 of the bottom-up network gets no gradient" in warning
    # The 1×1 convolution of 512 of 64 + 128 + 256 + 512 channels, and a bias each.
    assert f"{100 * (512 * 16 + 16) / (960 * 16 + 64):.0f} % of the neck's parameters" in warning


def test_fusion_takes_gradients_to_what_is_not_read(caplog):
    dataset = [record(320, 320, (30, 30))]
    _, (warning,) = said(caplog, config("MODEL.NECK.NAME", "FPN"), dataset)
    assert "nothing reads p3, p5" in warning and "bottom-up" not in warning
    # The output convolutions of p3 and p5: 2 · (9·16·16 + 16) of 4 · (9·16·16 + 16) + 960 · 16 + 4 · 16.
    assert f"{100 * 2 * 2320 / (4 * 2320 + 960 * 16 + 64):.0f} % of the neck's parameters" in warning


@pytest.mark.parametrize("canonical, level", [(224, "p2"), (30, "p4"), (15, "p5")])
def test_canonical_keys_count(caplog, canonical, level):
    (line,), _ = said(caplog, config("MODEL.ROI_ROUTING.CANONICAL_BOX_SIZE", canonical), [record(320, 320, (30, 30))])
    assert f"{level} 100 %" in line


@pytest.mark.parametrize("mode", ["adaptive", "soft"])
def test_routings_that_read_all_levels_say_so(caplog, mode):
    info, warnings = said(caplog, config("MODEL.ROI_ROUTING.MODE", mode), [record(320, 320, (30, 30))])
    assert info == [f"Each box reads all levels, p2, p3, p4, p5 (MODEL.ROI_ROUTING.MODE {mode})."] and not warnings


def test_dense_predictions_read_all_levels(caplog):
    _, warnings = said(caplog, config("MODEL.SparseRCNN.PROPOSALS", "dense"), [record(320, 320, (30, 30))])
    assert not warnings
    options = ["MODEL.SparseRCNN.PROPOSALS", "dense", "MODEL.SparseRCNN.DENSE_IN_FEATURES", ["p3", "p4", "p5"]]
    _, (warning,) = said(caplog, config(*options), [record(320, 320, (300, 300))])
    assert "nothing reads p2;" in warning


def test_frozen_stages_are_no_news(caplog):
    options = ["MODEL.NECK.NAME", "SSD", "MODEL.BACKBONE.FREEZE_AT", 5, "MODEL.SparseRCNN.PROPOSALS", "grid"]
    _, (warning,) = said(caplog, config(*options), [record(320, 320, (30, 30))])
    assert "bottom-up" not in warning


def test_no_boxes(caplog):
    (line,), _ = said(caplog, config(), [record(320, 320)])
    assert line.startswith("The training images have no annotated boxes")
