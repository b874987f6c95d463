"""Times of training steps in turns."""

import contextlib

import pytest

from sparsercnn import load_config
from sparsercnn.errors import InputError
from tools import step_times as module

from ..tiny_run import QUICKSTART, TINY


@pytest.mark.usefixtures("loggers")
def test_real_trainings_write_nothing(tiny, tmp_path):
    cfg = load_config(QUICKSTART, [*TINY, "OUTPUT_DIR", str(tmp_path / "out"), "SOLVER.EMA_DECAY", 0.99])
    seconds = module.step_times({"first": cfg.dump(), "second": cfg.dump()})
    assert list(seconds) == ["first", "second"] and min(seconds.values()) > 0
    assert not (tmp_path / "out").exists()


def test_medians_of_steps_in_turns_without_the_first(monkeypatch):
    clock, order = [0.0], []

    class Trainer:
        storage = contextlib.nullcontext()

        def __init__(self, cfg):
            self.cfg = cfg

        def before_train(self):
            clock[0] += 1000

        def run_step(self):
            batches = self.cfg.SOLVER.ACCUMULATE
            order.append(batches)
            clock[0] += 100 if self.iter < module.WARM_UP else batches

        before_step = after_step = lambda self: None

    monkeypatch.setattr(module, "Trainer", Trainer)
    monkeypatch.setattr(module.time, "process_time", lambda: clock[0])
    options = [*TINY, "DATASETS.TRAIN", "('shapes_train',)", "DATASETS.TEST", "()"]
    configs = {str(n): load_config(QUICKSTART, [*options, "SOLVER.ACCUMULATE", n]).dump() for n in (1, 4)}
    assert module.step_times(configs) == {"1": 1, "4": 4}
    assert order == [1, 4] * (module.WARM_UP + module.ROUNDS)


def test_times_are_measured_once_and_not_taken_for_those_of_other_settings(tmp_path, monkeypatch):
    calls = []

    class Pool:
        def submit(self, function, settings):
            calls.append(settings)
            return self

        def result(self):
            return {"a": 1.5}

    monkeypatch.setattr(module, "start_pool", lambda processes: contextlib.nullcontext(Pool()))
    cfg, other = (load_config(QUICKSTART, ["SOLVER.IMS_PER_BATCH", n]) for n in (2, 4))
    file = tmp_path / "out" / "seconds.json"
    assert module.measured_once({"a": cfg}, file) == module.measured_once({"a": cfg}, file) == {"a": 1.5}
    assert len(calls) == 1
    with pytest.raises(InputError, match="out holds a comparison with other settings: choose another --output"):
        module.measured_once({"a": other}, file)


@pytest.mark.parametrize("content", ["garbage", "[1]", "{}"])
def test_a_file_of_something_else_is_no_trace(tmp_path, content):
    (tmp_path / "seconds.json").write_text(content)
    with pytest.raises(InputError, match="holds a comparison with other settings"):
        module.measured_once({"a": load_config(QUICKSTART)}, tmp_path / "seconds.json")


def test_an_output_that_is_no_folder_is_refused_before_anything_is_measured(tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(InputError, match="cannot make the folder .*out: .*; choose another --output"):
        module.measured_once({"a": load_config(QUICKSTART)}, tmp_path / "out" / "seconds.json")
