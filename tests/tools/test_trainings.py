"""Trainings side by side: their budgets, what is kept of them, and what is done when one fails or was killed."""

import json
import re
import statistics
import threading
from pathlib import Path

import pytest

from sparsercnn import load_config
from sparsercnn.engine.run_folder import check_run_folder
from sparsercnn.errors import InputError
from tools import trainings

from ..sparsercnn.golden import GOLDEN

CONFIG = GOLDEN.parents[1] / "configs" / "bccd.yaml"


@pytest.fixture
def cfg(tmp_path):
    """A training of four iterations in a folder of its own."""
    return trainings.training(load_config(CONFIG), 7, tmp_path / "run", 4)


class Process:
    """Stands in for trainings: each writes its checkpoints and log, and ends with a status."""

    def __init__(self, monkeypatch, status=0):
        self.commands, self.status, self.terminated = [], status, False
        monkeypatch.setattr(trainings.subprocess, "Popen", self.start)

    def start(self, command, stdout, stderr, env):
        self.commands.append(command)
        self.environment = env
        folder = Path(command[command.index("--config-file") + 1]).parent
        for name in ("model_0000001.pth", "model_final.pth"):
            (folder / name).touch()
        (folder / "log.txt").write_text("iter: 1  max_mem: 900M\niter: 2  max_mem: 1031M\niter: 1  max_mem: 950M\n")
        stdout.write("Training ...\nerror: it is too late\n")
        return self

    def wait(self):
        return self.status

    def terminate(self):
        self.terminated = True


def test_warm_up_and_steps_scale_with_the_iterations():
    cfg = load_config(CONFIG, ["SOLVER.STEPS", (1000, 1500)])
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS) == (2000, 200)
    short = trainings.training(cfg, 3, Path("somewhere"), 500)
    assert (short.SOLVER.MAX_ITER, short.SOLVER.WARMUP_ITERS, short.SOLVER.STEPS) == (500, 50, (250, 375))
    assert (short.SEED, short.OUTPUT_DIR) == (3, "somewhere")
    assert (short.SOLVER.CHECKPOINT_PERIOD, short.TEST.EVAL_PERIOD) == (125, 0)
    assert trainings.training(cfg, 3, Path("somewhere"), 500, with_curve=True).TEST.EVAL_PERIOD == 125
    assert trainings.training(cfg, 3, Path("somewhere")).SOLVER.MAX_ITER == 2000
    shortest = trainings.training(cfg, 3, Path("somewhere"), 0).SOLVER
    assert (shortest.MAX_ITER, shortest.STEPS) == (2, (1,))
    assert cfg.SOLVER.MAX_ITER == 2000


@pytest.mark.parametrize("keep", [False, True])
def test_what_is_kept_of_a_training(cfg, monkeypatch, keep):
    process = Process(monkeypatch)
    trainings.train_all([cfg], 1, keep_weights=keep)
    assert [file.name for file in Path(cfg.OUTPUT_DIR).glob("*.pth")] == ["model_final.pth"] * keep
    assert trainings.read_memory(cfg) == 1031
    assert process.environment["OMP_NUM_THREADS"] == "1"


def test_finished_trainings_are_not_done_again(cfg, monkeypatch):
    process = Process(monkeypatch)
    assert not trainings.is_finished(cfg)
    trainings.train_all([cfg], 1)
    trainings.train_all([cfg], 1)
    assert trainings.is_finished(cfg) and len(process.commands) == 1


def test_what_was_killed_while_it_deleted_checkpoints_is_finished(cfg, monkeypatch):
    process = Process(monkeypatch)
    trainings.train_all([cfg], 1)
    (Path(cfg.OUTPUT_DIR) / "model_0000001.pth").touch()
    trainings.train_all([cfg], 1)
    assert len(process.commands) == 1 and not list(Path(cfg.OUTPUT_DIR).glob("*.pth"))


def test_other_settings_are_refused_before_anything_is_trained(cfg, tmp_path, monkeypatch):
    process = Process(monkeypatch)
    trainings.train_all([cfg], 1)
    others = [trainings.training(cfg, 1, tmp_path / "new"), trainings.training(cfg, 8, Path(cfg.OUTPUT_DIR))]
    with pytest.raises(InputError, match="run holds a training with other settings: choose another --output"):
        trainings.train_all(others, 2)
    assert len(process.commands) == 1


def test_a_failed_training_names_its_log_and_last_words(cfg, monkeypatch):
    Process(monkeypatch, status=3)
    with pytest.raises(
        InputError, match=r"failed with status 3, see .*output.txt; its last words: error: it is too late"
    ):
        trainings.train_all([cfg], 1)
    assert not trainings.is_finished(cfg)
    assert (Path(cfg.OUTPUT_DIR) / "model_0000001.pth").exists()


def test_when_one_training_fails_the_others_are_told_to_stop(cfg, tmp_path, monkeypatch):
    stopped, both_run = threading.Event(), threading.Barrier(2)

    class Training:
        def __init__(self, command, **kwargs):
            self.fails = str(tmp_path / "run") in command[command.index("--config-file") + 1]

        def wait(self):
            both_run.wait(60)
            return 3 if self.fails else int(not stopped.wait(60))

        def terminate(self):
            stopped.set()

    monkeypatch.setattr(trainings.subprocess, "Popen", Training)
    with pytest.raises(InputError, match="failed with status 3"):
        trainings.train_all([cfg, trainings.training(cfg, 8, tmp_path / "other")], 2)
    assert stopped.is_set()


def test_a_training_that_was_killed_before_its_first_checkpoint_continues(cfg, monkeypatch):
    process = Process(monkeypatch)
    Path(cfg.OUTPUT_DIR).mkdir()
    (Path(cfg.OUTPUT_DIR) / "metrics.json").write_text('{"iteration": 0}')
    trainings.train_all([cfg], 1)
    (command,) = process.commands
    check_run_folder(cfg, *(flag in command for flag in ("--resume", "--overwrite")))


def test_an_output_that_is_no_folder(cfg, tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(InputError, match="cannot make the folder .*run: .*; choose another --output"):
        trainings.train_all([cfg], 1)


def test_a_curve_counts_iterations_from_one_and_ends_with_the_last(cfg):
    Path(cfg.OUTPUT_DIR).mkdir()
    # As the trainer writes them: the last evaluation comes after the last iteration.
    lines = '{"iteration": 1, "bbox/AP": 2.0}\n{"iteration": 2, "lr": 0.1}\n{"iteration": 4, "bbox/AP": 3.0}\n'
    (Path(cfg.OUTPUT_DIR) / "metrics.json").write_text(lines)
    assert trainings.read_curve(cfg) == [(2, 2.0), (4, 3.0)]


def write_metrics(cfg, metrics):
    folder = Path(cfg.OUTPUT_DIR) / "inference" / cfg.DATASETS.TEST[0]
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps({"bbox": metrics}))


def test_a_model_that_finds_nothing_has_no_precision(cfg):
    write_metrics(cfg, {"AP": None, "AP50": None})
    assert trainings.read_metrics(cfg) == {"AP": 0.0, "AP50": 0.0}


def test_sizes_that_no_object_has_stay_unknown(cfg):
    write_metrics(cfg, {"AP": 10.0, "APl": None})
    assert trainings.read_metrics(cfg) == {"AP": 10.0, "APl": None}


@pytest.mark.parametrize(
    "names, message",
    [((), "DATASETS.TEST is ()"), (("voc_2007_val",), "is evaluated as pascal_voc; only coco will do")],
)
def test_test_sets_that_have_no_ap(names, message):
    cfg = load_config(CONFIG, ["DATASETS.TEST", names])
    with pytest.raises(InputError, match=re.escape(message)):
        trainings.check_test_set(cfg)


def test_intervals_are_those_of_student():
    assert trainings.interval([10.0]) == "10.0"
    # 4.303 is the 97.5 % quantile with two degrees of freedom.
    half = 4.303 * statistics.stdev([10.0, 12.0, 17.0]) / 3**0.5
    assert trainings.interval([10.0, 12.0, 17.0]) == f"13.0 ± {half:.1f}"
