"""No run is overwritten unless that was asked for, and then nothing but the run goes."""

import subprocess
import sys

import pytest

from sparsercnn import load_config
from sparsercnn.engine.run_folder import changed_settings, check_run_folder, only_training, remove_run
from sparsercnn.errors import InputError


@pytest.fixture
def cfg(tmp_path):
    return load_config(options=["OUTPUT_DIR", str(tmp_path), "MODEL.WEIGHTS", ""])


@pytest.mark.parametrize("name", ["last_checkpoint", "metrics.json", "model_0000004.pth"])
def test_a_folder_that_holds_a_run_is_left_alone(cfg, tmp_path, name):
    check_run_folder(cfg, resume=False, overwrite=False)
    (tmp_path / "log.txt").touch()  # of a run that came to nothing
    check_run_folder(cfg, resume=False, overwrite=False)
    (tmp_path / name).touch()
    with pytest.raises(InputError, match=f"{tmp_path} holds a run.*--resume.*--overwrite.*OUTPUT_DIR"):
        check_run_folder(cfg, resume=False, overwrite=False)
    check_run_folder(cfg, resume=True, overwrite=False)
    check_run_folder(cfg, resume=False, overwrite=True)
    with pytest.raises(InputError, match="choose one"):
        check_run_folder(cfg, resume=True, overwrite=True)


def test_a_run_is_not_removed_under_the_weights_that_a_training_starts_from(cfg, tmp_path):
    (tmp_path / "model_final.pth").touch()
    cfg.MODEL.WEIGHTS = str(tmp_path / "model_final.pth")
    with pytest.raises(InputError, match="MODEL.WEIGHTS.*model_final.pth"):
        check_run_folder(cfg, resume=False, overwrite=True)


def test_nothing_but_the_run_is_removed(tmp_path):
    mine = [tmp_path / "notes.txt", tmp_path / "my_model.pth", tmp_path / "sub" / "model_0000001.pth"]
    of_run = ["last_checkpoint", "metrics.json", "model_final.pth", "model_0000001.pth.partial", "config.yaml"]
    of_run += ["log.txt", "log.txt.rank1", "not_finite_0000003.pth", "inference/coco/metrics.json"]
    of_run += ["inference_stage2/coco/coco_instances_results.json"]
    for file in [*mine, *(tmp_path / name for name in of_run)]:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    remove_run(str(tmp_path))
    assert {file for file in tmp_path.rglob("*") if file.is_file()} == set(mine)


def test_changed_settings_are_named_with_both_values(cfg, tmp_path):
    assert changed_settings(cfg) == []
    (tmp_path / "config.yaml").write_text(cfg.dump())
    assert changed_settings(cfg) == []
    cfg.SOLVER.BASE_LR, cfg.SOLVER.STEPS = 0.5, (1, 2)
    rate, steps = changed_settings(cfg)
    assert rate.startswith("SOLVER.BASE_LR: ") and rate.endswith(" → 0.5")
    assert steps.startswith("SOLVER.STEPS: ") and steps.endswith(" → [1, 2]")
    (tmp_path / "config.yaml").write_text("SOLVER: [")
    assert "cannot be read" in changed_settings(cfg)[0]


TRY = """
import sys
from sparsercnn.engine.run_folder import only_training
from sparsercnn.errors import InputError
try:
    with only_training(sys.argv[1]):
        print("alone")
except InputError as error:
    print(error)
"""


def test_two_trainings_do_not_share_a_folder(tmp_path):
    def attempt() -> str:
        return subprocess.check_output([sys.executable, "-c", TRY, str(tmp_path)], text=True).strip()

    with only_training(str(tmp_path)):
        assert f"OUTPUT_DIR {tmp_path}: another training is running there" in attempt()
    assert attempt() == "alone"
