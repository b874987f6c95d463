"""The comparison of necks as one command: what it saves, what it does not do twice, and where it ends."""

import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from PIL import Image

from sparsercnn.data.shapes import annotation_file, prepare_shapes
from sparsercnn.errors import InputError
from tools import compare_necks
from tools.neck_comparison import laboratory
from tools.neck_comparison.training import Detector

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "compare" / "shapes_scales.yaml"
NECKS = ROOT / "configs" / "necks"
SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """Options that make a comparison of seconds: a few pictures of 64 pixels, a tiny ResNet, two iterations."""
    root = tmp_path_factory.mktemp("scenes")
    prepare_shapes(root, dict.fromkeys(SPLITS, 4), size=64)
    entries = [[f"compared_{split}", str(annotation_file(root, split)), str(root / split)] for split in SPLITS]
    yield f"""
    DATASETS.COCO_JSON {json.dumps(entries, separators=(",", ":"))}
    DATASETS.TRAIN ('compared_train',) DATASETS.TEST ('compared_val','compared_test')
    MODEL.NECK.BOTTOM_UP build_resnet_backbone MODEL.BACKBONE.FREEZE_AT 0 MODEL.NECK.OUT_CHANNELS 16
    MODEL.NECK.IN_FEATURES ['res2','res3'] MODEL.RESNETS.OUT_FEATURES ['res2','res3'] MODEL.NECK.NUM_LEVELS 2
    MODEL.ROI_HEADS.IN_FEATURES ['p2','p3'] MODEL.SparseRCNN.HIDDEN_DIM 16 MODEL.SparseRCNN.NUM_HEADS 1
    MODEL.SparseRCNN.NUM_PROPOSALS 8 MODEL.SparseRCNN.DIM_FEEDFORWARD 16 MODEL.SparseRCNN.DIM_DYNAMIC 4
    SOLVER.IMS_PER_BATCH 2 SOLVER.MAX_ITER 2 SOLVER.WARMUP_ITERS 1
    INPUT.MIN_SIZE_TRAIN (64,) INPUT.MIN_SIZE_TEST 64 INPUT.MAX_SIZE_TEST 64
    """.split()
    for split in SPLITS:
        DatasetCatalog.remove(f"compared_{split}")
        MetadataCatalog.remove(f"compared_{split}")


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """Trainings run in this process."""
    threads, level = torch.get_num_threads(), logging.root.manager.disable
    monkeypatch.setattr(compare_necks, "start_pool", ThreadPoolExecutor)
    yield
    torch.set_num_threads(threads)
    logging.disable(level)


@pytest.fixture
def fpn_finds_all(monkeypatch):
    """FPN with its top-down path finds every object, and other necks find nothing."""

    def detect(detector, pictures):
        fuses = getattr(detector.model.backbone.neck, "top_down", False)
        return [perfect(pictures.sample(i)) if fuses else nothing(pictures.sample(i)) for i in range(len(pictures))]

    monkeypatch.setattr(Detector, "detect", detect)


def perfect(sample):
    truth = sample["instances"]
    boxes, scores = truth.gt_boxes.tensor, torch.ones(len(truth))
    return Instances(truth.image_size, pred_boxes=Boxes(boxes), scores=scores, pred_classes=truth.gt_classes)


def nothing(sample):
    return perfect(sample)[:0]


def run(output, options, *arguments) -> int:
    command = [CONFIG, *options, "--neck", NECKS / "ssd.yaml", "--seeds", 2, "--processes", 1, "--output", output]
    return compare_necks.main([str(argument) for argument in (*command, *arguments)])


def test_one_command_tunes_trains_tests_and_is_not_repeated(tmp_path, options, fpn_finds_all, capsys, monkeypatch):
    assert run(tmp_path, options) == 0
    printed = capsys.readouterr().out
    assert "All together about " in printed
    folder = tmp_path / "shapes_scales"
    report = (folder / "report.md").read_text()
    assert report.strip() in printed
    for title in ("### Equal iterations", "### Equal training time", "### Equal multiply-adds", "### Costs"):
        assert title in report
    assert "compared_test (4 pictures with " in report and "2 seeds." in report
    results = json.loads((folder / "results.json").read_text())
    # Three rates were tried on pictures that are not the test's, with equal effort, and two seeds tested.
    for neck in ("fpn", "bottom_up", "ssd"):
        assert len(list((folder / neck).glob("compared_val_rate*_seed1000"))) == 3
        assert len(list((folder / neck).glob("compared_test_rate*_seed[12]"))) == 2
        assert sum(results["read"][neck]) == 2 * 2 * 2 * 8 or len(set(results["iterations"].values())) > 1
    assert results["scores"]["iterations"]["fpn"]["seeds"] == [100.0, 100.0]
    assert results["control_gain"]["mean"] == 100.0
    verdict = results["comparisons"]["iterations"]["ssd"]
    assert verdict["difference"]["mean"] == -100.0 and verdict["verdict"] == "worse"
    for plot in ("differences", "costs", "levels"):
        assert Image.open(folder / f"{plot}.png").size[0] > 100

    def train_again(training):
        raise AssertionError("a training that is done was done again")

    monkeypatch.setattr(laboratory, "train", train_again)
    assert run(tmp_path, options) == 0
    assert json.loads((folder / "results.json").read_text()) == results
    capsys.readouterr()
    assert run(tmp_path, options, "SOLVER.BASE_LR", 0.01) == 2
    assert "holds a comparison of other necks or settings" in capsys.readouterr().err


def test_a_comparison_that_cannot_see_the_control_ends(tmp_path, options, capsys, monkeypatch):
    monkeypatch.setattr(Detector, "detect", lambda detector, pictures: [nothing(pictures.sample(0))] * len(pictures))
    assert run(tmp_path, options) == 1
    printed = capsys.readouterr().out
    assert "brings +0.0 [+0.0, +0.0] AP, which is not above nothing" in printed
    assert not (tmp_path / "shapes_scales" / "ssd").exists()
    assert not (tmp_path / "shapes_scales" / "report.md").exists()


def test_what_was_stopped_goes_on(tmp_path, options, fpn_finds_all, monkeypatch, capsys):
    done, train = [], laboratory.train

    def count(training):
        train(training)
        done.append(training.folder)

    def stop_at_the_fifth(training):
        if len(done) == 4:
            raise KeyboardInterrupt
        count(training)

    monkeypatch.setattr(laboratory, "train", stop_at_the_fifth)
    assert run(tmp_path, options) == 130
    assert "Continue with the same command" in capsys.readouterr().err
    assert len(done) == 4
    monkeypatch.setattr(laboratory, "train", count)
    assert run(tmp_path, options) == 0
    assert len(done) == len(set(done)) == 3 * (3 + 2)


def test_a_killed_process_ends_the_comparison(capsys):
    with pytest.raises(InputError, match="was killed; where memory ran out, give fewer --processes"):
        with laboratory.start_pool(1) as pool:
            laboratory.in_parallel(pool, [(os._exit, (1,))])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--neck", NECKS / "fpn.yaml"], "two neck configs have the same file name"),
        (["--neck", NECKS / "pvt_v2_b2.fpn.yaml"], "is about the bottom-up network build_timm_backbone"),
        (["MODEL.NECK.NOM", "BN"], "MODEL.NECK.NOM"),
        (["--neck", "nosuch.yaml"], "nosuch.yaml does not exist"),
        (["DATASETS.TEST", "('compared_val',)"], "must name one data set and DATASETS.TEST two"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, options, arguments, message):
    assert run(tmp_path, options, *arguments) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1 and message in error[0]
