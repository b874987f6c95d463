"""`load_config`, and the one line that each mistake in a config file or among the options gets."""

from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog

from sparsercnn import add_sparsercnn_config, config_file, load_config
from sparsercnn.errors import InputError

ROOT = Path(__file__).parents[2]
FASTER_RCNN = "configs/fasterrcnn/faster_rcnn_R_50_C4_1x.yaml"


def write(folder, text, name="config.yaml"):
    path = folder / name
    path.write_text(text)
    return str(path)


def error_of(config_file=None, options=()):
    with pytest.raises(InputError) as raised:
        load_config(config_file, options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_file_and_then_options_are_merged(tmp_path):
    write(tmp_path, "SOLVER:\n  MAX_ITER: 5\n  BASE_LR: 0.5\n", "base.yaml")
    path = write(tmp_path, "_BASE_: base.yaml\nSOLVER:\n  MAX_ITER: 7\n")
    cfg = load_config(path, ["MODEL.SparseRCNN.NUM_CLASSES", "3"])
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR, cfg.MODEL.SparseRCNN.NUM_CLASSES) == (7, 0.5, 3)


def test_unknown_key_in_a_file(tmp_path):
    path = write(tmp_path, "MODEL:\n  SparseRCNN:\n    NUM_PROPOSAL: 5\n")
    message = error_of(path)
    assert "MODEL.SparseRCNN.NUM_PROPOSAL " in message and path in message
    assert "did you mean MODEL.SparseRCNN.NUM_PROPOSALS?" in message


def test_unknown_key_among_the_options():
    message = error_of(None, ["SOLVER.MAXITER", "5"])
    assert "SOLVER.MAXITER" in message and "did you mean SOLVER.MAX_ITER?" in message


def test_missing_files(tmp_path):
    assert "nowhere.yaml does not exist" in error_of("nowhere.yaml")
    path = write(tmp_path, "_BASE_: gone.yaml\n")
    message = error_of(path)
    assert "gone.yaml" in message and path in message and "_BASE_" in message


@pytest.mark.parametrize("text", ["MODEL:\n  WEIGHTS: [1, 2\nSOLVER: 3\n", "MODEL:\n\tWEIGHTS: a\n", "A: *unknown\n"])
def test_malformed_yaml(tmp_path, text):
    path = write(tmp_path, text)
    message = error_of(path)
    assert "YAML" in message and path in message and "line" in message


@pytest.mark.parametrize("text", ["", "just words\n", "- a\n- list\n", "_BASE_: config.yaml\n"])
def test_a_file_that_is_no_config(tmp_path, text):
    path = write(tmp_path, text)
    assert path in error_of(path)


def test_yaml_that_would_run_code_is_refused(tmp_path):
    target = tmp_path / "evidence"
    path = write(tmp_path, f'OUTPUT_DIR: !!python/object/apply:os.mkdir ["{target}"]\n')
    assert path in error_of(path)
    assert not target.exists()


def test_wrong_value_types(tmp_path):
    message = error_of(write(tmp_path, "SOLVER:\n  MAX_ITER: many\n"))
    assert "SOLVER.MAX_ITER" in message and "int" in message and "many" in message
    assert "SOLVER.STEPS" in error_of(None, ["SOLVER.STEPS", "7"])
    assert "MODEL" in error_of(None, ["MODEL", "7"])


def test_options_come_in_pairs():
    assert "KEY VALUE" in error_of(None, ["SOLVER.MAX_ITER"])


def test_flags_come_before_options():
    assert "--eval-only must stand before" in error_of(None, ["SOLVER.MAX_ITER", "3", "--eval-only"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_without_a_gpu_the_cpu_is_chosen_with_one_log_line(caplog):
    assert load_config(options=["MODEL.DEVICE", "cuda:1"]).MODEL.DEVICE == "cpu"
    assert len(caplog.records) == 1 and "MODEL.DEVICE cuda:1 becomes cpu" in caplog.text
    load_config(options=["MODEL.DEVICE", "cpu"])
    assert len(caplog.records) == 1


def test_the_defaults_have_the_keys_of_every_package():
    cfg = load_config()
    assert cfg.MODEL.SparseRCNN.NUM_PROPOSALS == 300 and cfg.MODEL.NECK.NAME == "FPN" and cfg.MODEL.FPN.NORM == ""
    assert load_config("") == cfg


def test_options_need_not_be_strings(tmp_path):
    cfg = load_config(Path(write(tmp_path, "SEED: 1\nVERSION: 2\n")), ("SOLVER.MAX_ITER", 7, "SOLVER.STEPS", (3, 5)))
    assert (cfg.SEED, cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (1, 7, (3, 5))


def test_data_sets_that_the_config_names_are_registered(tmp_path):
    name = f"named_{tmp_path.name}"
    load_config(write(tmp_path, f"DATASETS:\n  COCO_JSON: [[{name}, a.json, pictures]]\n"))
    assert MetadataCatalog.get(name).json_file == "a.json"
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


@pytest.mark.parametrize("key", ["CHANNELS_LAST", "FOLD_FROZEN_BN", "CPU_KERNELS"])
def test_keys_of_earlier_versions_that_became_one(tmp_path, key):
    path = write(tmp_path, f"MODEL:\n  {key}: True\n")
    assert error_of(path) == f"config key MODEL.{key} in {path} is now SOLVER.FAST"
    assert error_of(None, [f"MODEL.{key}", "True"]) == f"config key MODEL.{key} among the options is now SOLVER.FAST"


def test_keys_of_earlier_versions_that_mean_nothing_any_more_are_ignored_with_a_line(tmp_path, caplog):
    text = "INPUT:\n  REDUCED_JPEG_DECODE: True\nTEST:\n  WINOGRAD: False\n  ON_DEMAND: False\nMODEL:\n  DEVICE: cpu\n"
    cfg = load_config(write(tmp_path, text + "VERSION: 2\n"))
    assert not {"REDUCED_JPEG_DECODE", "WINOGRAD", "ON_DEMAND"} & {*cfg.INPUT, *cfg.TEST}
    lines = [record.message for record in caplog.records]
    assert len(lines) == 3 and all("Deprecated config key" in line for line in lines)


def test_a_file_that_comes_with_the_package_is_found_from_anywhere(tmp_path, monkeypatch):
    package = tmp_path / "site-packages" / "sparsercnn"
    (package / "configs").mkdir(parents=True)
    write(package / "configs", "SEED: 5\n", "mine.yaml")
    monkeypatch.setattr(config_file, "__file__", str(package / "config_file.py"))
    monkeypatch.chdir(tmp_path)
    assert load_config("configs/mine.yaml").SEED == 5
    (tmp_path / "configs").mkdir()
    write(tmp_path / "configs", "SEED: 6\n", "mine.yaml")
    assert load_config("configs/mine.yaml").SEED == 6


@pytest.mark.parametrize("file", [FASTER_RCNN, "configs/fasterrcnn/rpn_R_50_FPN_1x.yaml"])
def test_detectron2s_own_detectors_have_its_defaults(file):
    official = get_cfg()
    official.merge_from_file(str(ROOT / file))
    cfg = load_config(ROOT / file)
    for key in ("ROI_HEADS", "ROI_BOX_HEAD", "RPN", "ANCHOR_GENERATOR", "RESNETS"):
        assert cfg.MODEL[key] == official.MODEL[key]
    assert cfg.SOLVER.OPTIMIZER == "SGD" and cfg.SOLVER.WEIGHT_DECAY_NORM == 0.0
    assert cfg.TEST.AUG.MIN_SIZES == official.TEST.AUG.MIN_SIZES and not cfg.TEST.AUG.CVPODS_TTA


def test_options_may_name_the_detector():
    cfg = load_config(options=["MODEL.META_ARCHITECTURE", "GeneralizedRCNN"])
    assert cfg.SOLVER.OPTIMIZER == "SGD" and cfg.MODEL.ROI_HEADS.IN_FEATURES == ["res4"]
    cfg = load_config(ROOT / FASTER_RCNN, ["MODEL.META_ARCHITECTURE", "SparseRCNN"])
    assert cfg.SOLVER.OPTIMIZER == "ADAMW"


def test_keys_that_sparse_rcnn_adds_by_itself_have_its_published_defaults():
    cfg = get_cfg()
    add_sparsercnn_config(cfg)
    assert cfg.SOLVER.OPTIMIZER == "ADAMW" and cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION == 7
    assert load_config().MODEL.ROI_BOX_HEAD == cfg.MODEL.ROI_BOX_HEAD
