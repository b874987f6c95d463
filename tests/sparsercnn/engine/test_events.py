"""Logged values are carried over an interruption, and each iteration stands in metrics.json once."""

import json
from types import SimpleNamespace

import pytest

from sparsercnn.engine.events import KEPT, WINDOW, MetricsFile, RunEvents, WriteEvents
from sparsercnn.errors import InputError

EVALUATED = 25


def put(storage, iteration):
    storage.iter = iteration
    storage.put_scalars(loss=(iteration * 37 % 11) / 7, time=iteration / 3)
    storage.put_scalar("lr", 1 / (iteration + 1), smoothing_hint=False)
    if iteration == EVALUATED:
        storage.put_scalar("bbox/AP", 40.0, smoothing_hint=False)


def log(path, iterations, storage=None, period=20):
    """Log iterations as a training does; returns the storage."""
    storage = storage or RunEvents()
    writer = MetricsFile(path)
    writer.start_from(iterations[0])
    with storage:
        for iteration in iterations:
            put(storage, iteration)
            if (iteration + 1) % period == 0:
                writer.write()
    writer.close()
    return storage


def lines(path):
    return [{k: v for k, v in json.loads(line).items() if k != "time"} for line in path.read_text().splitlines()]


def test_a_line_has_the_medians_and_the_latest_values_of_its_iteration(tmp_path):
    log(tmp_path / "metrics.json", range(40))
    first, evaluated, last = lines(tmp_path / "metrics.json")
    losses = sorted((i * 37 % 11) / 7 for i in range(20))
    assert first == {"iteration": 19, "lr": 1 / 20, "loss": (losses[9] + losses[10]) / 2}
    assert evaluated == {"iteration": EVALUATED, "bbox/AP": 40.0}
    assert last.keys() == {"iteration", "lr", "loss"} and last["iteration"] == 39


@pytest.mark.parametrize("stop", [5, 19, 27, 39, 41])
def test_what_continues_writes_what_would_have_been_written(tmp_path, stop):
    whole, torn = tmp_path / "whole.json", tmp_path / "torn.json"
    log(whole, range(60))
    saved = log(torn, range(stop)).state_dict()
    # The run went on after its checkpoint for a while, and died in the middle of a line.
    with torn.open("a") as file:
        file.write(json.dumps({"iteration": stop + 1, "loss": 1.0}) + '\n{"iteration": ' + str(stop + 2))
    storage = RunEvents()
    storage.load_state_dict(json.loads(json.dumps(saved)))
    log(torn, range(stop, 60), storage)
    assert lines(torn) == lines(whole)


def test_every_evaluation_is_written(tmp_path):
    path = tmp_path / "metrics.json"
    writing = WriteEvents([MetricsFile(path)], eval_period=7)
    writing.trainer = SimpleNamespace(start_iter=0, max_iter=30)
    writing.before_train()
    with RunEvents() as storage:
        for writing.trainer.iter in range(30):
            put(storage, writing.trainer.iter)
            writing.after_step()
    assert [line["iteration"] for line in lines(path)] == [6, 13, 19, 20, EVALUATED, 27, 29]


def test_measured_times_are_not_carried_over():
    storage = RunEvents()
    put(storage, 3)
    assert storage.state_dict().keys() == {"loss", "lr"}


def test_memory_is_bounded():
    storage = RunEvents()
    for i in range(KEPT + 100):
        put(storage, i)
    assert len(storage.history("loss").values()) == KEPT
    assert len(storage.state_dict()["loss"]["values"]) == WINDOW


def test_a_new_training_starts_a_new_file(tmp_path):
    path = tmp_path / "metrics.json"
    log(path, range(20))
    log(path, range(20))
    assert [line["iteration"] for line in lines(path)] == [19]


def test_a_file_that_cannot_be_written_to_is_an_input_error(tmp_path):
    writer = MetricsFile(tmp_path / "gone" / "metrics.json")
    with RunEvents() as storage, pytest.raises(InputError, match="cannot write .*metrics.json"):
        put(storage, 0)
        writer.write()
