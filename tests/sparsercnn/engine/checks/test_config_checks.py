"""Mistakes in a config get one line that names the key and what to do, before the model is built."""

from pathlib import Path

import pytest
import torch
from detectron2.layers import get_norm

from sparsercnn import load_config
from sparsercnn.engine import check_config, check_model
from sparsercnn.engine.checks.model_table import NORMS
from sparsercnn.errors import InputError

CONFIGS = Path(__file__).parents[4] / "configs"


@pytest.fixture
def cfg():
    return load_config(CONFIGS / "quickstart.yaml", ["MODEL.DEVICE", "cpu", "TEST.AUG.ENABLED", True])


def error_of(cfg, key, value):
    cfg.merge_from_list([key, value])
    with pytest.raises(InputError) as raised:
        check_config(cfg)
    assert "\n" not in str(raised.value) and key in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(
    ("key", "value", "meant"),
    [
        ("MODEL.META_ARCHITECTURE", "SparseRCN", "SparseRCNN"),
        ("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbon", "build_resnet_fpn_backbone"),
        ("MODEL.ROI_ROUTING.MODE", "levels", "level"),
        ("MODEL.ROI_ROUTING.POOLER", "RoIPooler", "ROIPooler"),
        ("SOLVER.OPTIMIZER", "ADAM", "ADAMW"),
        ("SOLVER.LR_SCHEDULER_NAME", "OneCycleLR", "OneCycle"),
        ("SOLVER.AMP.PRECISION", "bfloat", "bfloat16"),
        ("TEST.PRECISION", "float", "float32"),
    ],
)
def test_a_name_that_is_no_choice_gets_the_choices_and_the_closest_one(cfg, key, value, meant):
    message = error_of(cfg, key, value)
    assert repr(value) in message and "choose one of" in message and f"did you mean {meant}?" in message


def test_a_name_like_no_choice_gets_the_choices_alone(cfg):
    message = error_of(cfg, "TEST.PRECISION", "int8")
    assert message == "TEST.PRECISION is 'int8'; choose one of float32, bfloat16, float16"


@pytest.mark.parametrize("name", ["float16", "bfloat16", "auto"])
def test_precisions_of_training(cfg, name):
    cfg.SOLVER.AMP.PRECISION = name
    check_model(cfg)


@pytest.mark.parametrize(
    ("key", "value", "smallest"),
    [
        ("SOLVER.MAX_ITER", -3, 1),
        ("MODEL.SparseRCNN.NUM_HEADS", 0, 1),
        ("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 0, 1),
        ("MODEL.ROI_ROUTING.CANONICAL_BOX_SIZE", -224, 1),
        ("INPUT.MIN_SIZE_TEST", -1, 0),
        ("TEST.EVAL_PERIOD", -1, 0),
        ("TEST.AUG.MAX_SIZE", 0, 32),
    ],
)
def test_numbers_that_make_no_sense(cfg, key, value, smallest):
    assert error_of(cfg, key, value) == f"{key} is {value}; it must be at least {smallest}"


@pytest.mark.parametrize("sizes", [(), (0, 400), ("400",)])
def test_views_of_test_time_augmentation_have_sizes(cfg, sizes):
    assert str(sizes) in error_of(cfg, "TEST.AUG.MIN_SIZES", sizes)


@pytest.mark.parametrize("entry", [["bbox", "AP", 42.0], ["bbox", "AP", "42", 0.5], ["AP", 42.0, 0.5, 1], "bbox", 3])
def test_expected_results_are_checked_before_they_are_needed(cfg, entry):
    assert str(entry) in error_of(cfg, "TEST.EXPECTED_RESULTS", [["bbox", "AP50", 60, 1.5], entry])


def test_how_the_model_is_to_run_is_checked_before_training(cfg):
    cfg.TEST.COMPILE, cfg.TEST.PREPARE = True, False
    with pytest.raises(InputError, match="TEST.PREPARE is False"):
        check_config(cfg)


def test_processes_must_share_a_batch_equally(cfg):
    cfg.SOLVER.IMS_PER_BATCH = 3
    with pytest.raises(InputError, match="SOLVER.IMS_PER_BATCH is 3.*multiple of 2"):
        check_config(cfg, processes=2)


def test_missing_weights(cfg):
    cfg.MODEL.WEIGHTS = "gone.pth"
    with pytest.raises(InputError, match="MODEL.WEIGHTS.*gone.pth"):
        check_config(cfg)


def test_an_evaluation_of_a_run_needs_its_checkpoint(cfg, tmp_path):
    cfg.OUTPUT_DIR = str(tmp_path)
    with pytest.raises(InputError, match=f"--resume.*{tmp_path}"):
        check_config(cfg, resume=True, eval_only=True)


def test_every_norm_of_the_table_is_one_that_detectron2_builds():
    for norm in NORMS:
        assert (get_norm(norm, 64) is None) == (norm == "")
    with pytest.raises(KeyError):
        get_norm("Batch", 64)


def test_a_model_that_cannot_be_built_without_memory_is_built_with_it(cfg):
    cfg.MODEL.BACKBONE.NAME = "build_timm_backbone"
    cfg.MODEL.TIMM.NAME = "resnet18"
    assert "has res9" in error_of(cfg, "MODEL.TIMM.OUT_FEATURES", ["res2", "res3", "res9"])


def test_checking_a_model_draws_no_random_numbers(cfg):
    before = torch.get_rng_state()
    check_model(cfg)
    assert torch.equal(torch.get_rng_state(), before)


def test_parts_that_are_not_used_are_not_checked(cfg):
    cfg.MODEL.FPN.NORM, cfg.MODEL.ROI_HEADS.NAME, cfg.MODEL.SparseRCNN.USE_FOCAL = "?", "?", True
    check_model(cfg)
    cfg = load_config(CONFIGS / "fasterrcnn" / "faster_rcnn_R_50_FPN_1x.yaml", ["MODEL.DEVICE", "cpu"])
    cfg.MODEL.SparseRCNN.ALPHA = 5.0
    check_model(cfg, with_weights=False)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SEED", -7),
        ("TEST.DETECTIONS_PER_IMAGE", -1),
        ("INPUT.MIN_SIZE_TEST", 0),
        ("INPUT.RANDOM_FLIP", "none"),
        ("MODEL.BACKBONE.FREEZE_AT", 0),
        ("SOLVER.STEPS", ()),
        ("SOLVER.CLIP_GRADIENTS.NORM_TYPE", float("inf")),
        ("SOLVER.WEIGHT_DECAY_NORM", None),
        ("SOLVER.WEIGHT_DECAY_BIAS", None),
        ("MODEL.SparseRCNN.DROPOUT", 0.0),
        ("INPUT.FORMAT", "BGR"),
        ("INPUT.CROP.SIZE", [384, 600]),
    ],
)
def test_values_with_a_meaning_of_their_own_are_accepted(cfg, key, value):
    cfg.merge_from_list([key, value])
    check_model(cfg)
