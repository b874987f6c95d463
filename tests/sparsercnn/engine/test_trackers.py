"""What training logs arrives at experiment trackers; here modules that stand in for their libraries."""

import sys
import types

import pytest
from detectron2.utils.events import EventStorage

from sparsercnn import load_config
from sparsercnn.engine.trackers import build_trackers
from sparsercnn.errors import InputError


def stand_in(monkeypatch, name, functions):
    """A module whose functions write down how they were called."""
    calls = []
    module = types.ModuleType(name)
    for function in functions:
        setattr(module, function, lambda *a, _name=function, **k: calls.append((_name, a, k)))
    monkeypatch.setitem(sys.modules, name, module)
    return calls


def train(name):
    (tracker,) = build_trackers(load_config("configs/quickstart.yaml", ["TRACKER", name]))
    with EventStorage() as storage:
        for iteration in range(2):
            storage.iter = iteration
            storage.put_scalar("total_loss", 3.0 - iteration, smoothing_hint=False)
            tracker.write()
        tracker.write()  # nothing new
    tracker.close()


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_values_arrive_once(monkeypatch, name):
    calls = stand_in(monkeypatch, name, ["init", "log", "finish"])
    train(name)
    assert [call[0] for call in calls] == ["init", "log", "log", "finish"]
    assert calls[0][2]["name"] == "output/quickstart" and calls[0][2]["config"]["SOLVER.BASE_LR"] == 0.0012
    assert calls[1][1:] == (({"total_loss": 3.0},), {"step": 0})
    assert calls[2][1:] == (({"total_loss": 2.0},), {"step": 1})


def test_mlflow_has_words_of_its_own(monkeypatch):
    calls = stand_in(monkeypatch, "mlflow", ["set_experiment", "start_run", "log_params", "log_metrics", "end_run"])
    train("mlflow")
    names = [call[0] for call in calls]
    assert names == ["set_experiment", "start_run", "log_params", "log_metrics", "log_metrics", "end_run"]
    assert calls[3][1:] == (({"total_loss": 3.0},), {"step": 0})


def test_a_library_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match="TRACKER is 'wandb', which is not installed: pip install wandb"):
        build_trackers(load_config("configs/quickstart.yaml", ["TRACKER", "wandb"]))


def test_none_unless_asked_for():
    assert build_trackers(load_config("configs/quickstart.yaml")) == []
