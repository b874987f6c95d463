"""Mistakes in a config get one line that names the key, the file and what to do."""

import logging

import pytest
import torch
from detectron2.config import get_cfg

from sparsercnn import add_sparsercnn_config
from sparsercnn.engine import check_config, choose_device, merge_config
from sparsercnn.errors import InputError


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_sparsercnn_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "SparseRCNN"
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    return cfg


def write(folder, text, name="config.yaml"):
    path = folder / name
    path.write_text(text)
    return str(path)


def merge_error(cfg, config_file, options=()):
    with pytest.raises(InputError) as raised:
        merge_config(cfg, config_file, list(options))
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_file_and_then_options_are_merged(cfg, tmp_path):
    write(tmp_path, "SOLVER:\n  MAX_ITER: 5\n  BASE_LR: 0.5\n", "base.yaml")
    path = write(tmp_path, "_BASE_: base.yaml\nSOLVER:\n  MAX_ITER: 7\n")
    merge_config(cfg, path, ["MODEL.SparseRCNN.NUM_CLASSES", "3"])
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR, cfg.MODEL.SparseRCNN.NUM_CLASSES) == (7, 0.5, 3)


def test_unknown_key_in_a_file(cfg, tmp_path):
    path = write(tmp_path, "MODEL:\n  SparseRCNN:\n    NUM_PROPOSAL: 5\n")
    message = merge_error(cfg, path)
    assert "MODEL.SparseRCNN.NUM_PROPOSAL " in message and path in message
    assert "did you mean MODEL.SparseRCNN.NUM_PROPOSALS?" in message


def test_unknown_key_among_the_options(cfg):
    message = merge_error(cfg, "", ["SOLVER.MAXITER", "5"])
    assert "SOLVER.MAXITER" in message and "did you mean SOLVER.MAX_ITER?" in message


def test_missing_files(cfg, tmp_path):
    assert "nowhere.yaml does not exist" in merge_error(cfg, "nowhere.yaml")
    path = write(tmp_path, "_BASE_: gone.yaml\n")
    message = merge_error(cfg, path)
    assert "gone.yaml" in message and path in message and "_BASE_" in message


@pytest.mark.parametrize("text", ["MODEL:\n  WEIGHTS: [1, 2\nSOLVER: 3\n", "MODEL:\n\tWEIGHTS: a\n", "A: *unknown\n"])
def test_malformed_yaml(cfg, tmp_path, text):
    path = write(tmp_path, text)
    message = merge_error(cfg, path)
    assert "YAML" in message and path in message and "line" in message


@pytest.mark.parametrize("text", ["", "just words\n", "- a\n- list\n", "_BASE_: config.yaml\n"])
def test_a_file_that_is_no_config(cfg, tmp_path, text):
    path = write(tmp_path, text)
    assert path in merge_error(cfg, path)


def test_yaml_that_would_run_code_is_refused(cfg, tmp_path):
    target = tmp_path / "evidence"
    path = write(tmp_path, f'OUTPUT_DIR: !!python/object/apply:os.mkdir ["{target}"]\n')
    assert path in merge_error(cfg, path)
    assert not target.exists()


def test_wrong_value_types(cfg, tmp_path):
    message = merge_error(cfg, write(tmp_path, "SOLVER:\n  MAX_ITER: many\n"))
    assert "SOLVER.MAX_ITER" in message and "int" in message and "many" in message
    assert "SOLVER.STEPS" in merge_error(cfg, "", ["SOLVER.STEPS", "7"])
    assert "MODEL" in merge_error(cfg, "", ["MODEL", "7"])


def test_options_come_in_pairs(cfg):
    assert "KEY VALUE" in merge_error(cfg, "", ["SOLVER.MAX_ITER"])


@pytest.mark.parametrize(
    ("key", "value", "meant"),
    [
        ("MODEL.META_ARCHITECTURE", "SparseRCN", "SparseRCNN"),
        ("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbon", "build_resnet_fpn_backbone"),
    ],
)
def test_unregistered_components(cfg, key, value, meant):
    merge_config(cfg, "", [key, value])
    with pytest.raises(InputError, match=rf"{key}.*{value}.*did you mean {meant}\?"):
        check_config(cfg)


def test_flags_come_before_options(cfg):
    assert "--eval-only must stand before" in merge_error(cfg, "", ["SOLVER.MAX_ITER", "3", "--eval-only"])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SOLVER.MAX_ITER", -3),
        ("MODEL.SparseRCNN.NUM_HEADS", 0),
        ("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 0),
        ("MODEL.ROI_ROUTING.CANONICAL_BOX_SIZE", -224),
    ],
)
def test_numbers_that_make_no_sense(cfg, key, value):
    cfg.merge_from_list([key, value])
    with pytest.raises(InputError, match=f"{key} is {value}; it must be at least 1"):
        check_config(cfg)


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


def test_resume_without_a_checkpoint(cfg, tmp_path):
    cfg.OUTPUT_DIR = str(tmp_path)
    with pytest.raises(InputError, match=f"--resume.*{tmp_path}"):
        check_config(cfg, resume=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_without_a_gpu_the_cpu_is_chosen_with_one_log_line(cfg, caplog):
    assert cfg.MODEL.DEVICE == "cuda"
    with caplog.at_level(logging.INFO):
        choose_device(cfg)
        choose_device(cfg)
    assert cfg.MODEL.DEVICE == "cpu"
    assert len(caplog.records) == 1 and "cpu" in caplog.text
