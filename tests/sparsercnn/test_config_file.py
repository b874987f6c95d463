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


def multiply(first, more):
    lines = [f"k0: &k0 {first}", *(f"k{i + 1}: &k{i + 1} {more.format(', '.join([f'*k{i}'] * 9))}" for i in range(20))]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (multiply("[1]", "[{}]"), "config.yaml, line 5: aliases multiply to more than 10000 values"),
        (multiply("{k: 1}", "{{<<: [{}]}}"), "config.yaml, line 5: aliases multiply to more than 10000 values"),
        ("A: &a [*a]\n", "config.yaml, line 1: this value holds itself"),
        ("A: " + "[" * 60000 + "\n", "config.yaml is nested too deeply"),
        ("SEED: 1\n" * 10000, "config.yaml has more than 65536 characters"),
        ("SEED: " + "9" * 5000 + "\n", "config.yaml cannot be read: Exceeds the limit"),
        (f"OUTPUT_DIR: '{'-' * 60000}1'\n", "config.yaml has a value that is nested too deeply"),
        ("SEED: 1\nVERSION: 2\nSEED: 3\n", "config.yaml, line 3: the key SEED stands here a second time"),
        ("SEED:\n", "config key SEED has no value; leave it out for the default, -1"),
        ("MODEL:\n", "config key MODEL"),
        ("OUTPUT_DIR: 2024-01-01\n", "config.yaml, line 1: the tag tag:yaml.org,2002:timestamp"),
        ("1: 2\n", "config.yaml, line 1: a key must be a word"),
        ("[A]: 2\n", "config.yaml, line 1: a key must be a word"),
        ("SEED: \0\n", "malformed YAML in"),
        ("SEED: 1\n---\nSEED: 2\n", "malformed YAML in"),
        ("_BASE_: [a.yaml]\n", "config.yaml must be the name of one file"),
        ("_BASE_: http://localhost:1/a.yaml\n", "is 'http://localhost:1/a.yaml'; it must be a file on this machine"),
        ("_BASE_: detectron2://a.yaml\n", "it must be a file on this machine"),
        ("SOLVER:\n  BASE_LR: " + "x" * 50000, "SOLVER.BASE_LR"),
    ],
)
def test_a_hostile_or_careless_file_gets_one_short_line(tmp_path, text, message):
    found = error_of(write(tmp_path, text))
    assert message in found and len(found) < 600 and found.isprintable()


def test_a_file_that_is_no_text(tmp_path):
    (tmp_path / "config.yaml").write_bytes(bytes(range(256)))
    assert "config.yaml is not text in UTF-8" in error_of(str(tmp_path / "config.yaml"))


def test_a_loop_over_several_files(tmp_path):
    write(tmp_path, "_BASE_: b.yaml\n", "a.yaml")
    (tmp_path / "link.yaml").symlink_to("a.yaml")
    write(tmp_path, "_BASE_: link.yaml\n", "b.yaml")
    assert "leads back to" in error_of(str(tmp_path / "a.yaml"))


def test_what_is_wrong_in_a_base_is_said_of_the_base(tmp_path):
    write(tmp_path, "SEED: 1\nSEED: 2\n", "base.yaml")
    assert "base.yaml, line 2" in error_of(write(tmp_path, "_BASE_: base.yaml\n"))


def test_aliases_may_be_used_with_measure(tmp_path):
    text = "MODEL:\n  PIXEL_MEAN: &three [1.0, 2.0, 3.0]\n  PIXEL_STD: *three\n"
    assert load_config(write(tmp_path, text)).MODEL.PIXEL_STD == [1, 2, 3]


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "", "xpu:0"])
def test_devices_that_are_not_there(name):
    assert f"MODEL.DEVICE is {name!r}" in error_of(None, ["MODEL.DEVICE", name])


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
