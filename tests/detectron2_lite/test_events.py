"""What training puts in the event storage, and how the writers show it."""

import json
import logging
import re
from logging.handlers import BufferingHandler

import numpy as np
import pytest
import torch
from detectron2.utils.events import (
    CommonMetricPrinter,
    EventStorage,
    JSONWriter,
    TensorboardXWriter,
    get_event_storage,
    has_event_storage,
)


@pytest.fixture
def lines():
    """Log lines of the printer, whatever handlers other code installed."""
    handler = BufferingHandler(100)
    logger = logging.getLogger("detectron2.utils.events")
    previous = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    yield lambda: [record.getMessage() for record in handler.buffer]
    logger.removeHandler(handler)
    logger.setLevel(previous)


def read_json(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_innermost_storage_is_the_current_one():
    assert not has_event_storage()
    with pytest.raises(AssertionError):
        get_event_storage()
    with EventStorage() as outer:
        with EventStorage(10) as inner:
            assert get_event_storage() is inner and inner.iter == 10
        assert get_event_storage() is outer
    assert not has_event_storage()


def test_scalars_and_history():
    with EventStorage(start_iter=5) as storage:
        for value in (3.0, 1.0, 2.0):
            storage.put_scalar("loss", torch.tensor(value))
            storage.put_scalars(lr=value, smoothing_hint=False)
            storage.step()
        storage.put_scalar("late", 9, cur_iter=100)
        with storage.name_scope("head"):
            storage.put_scalar("accuracy", 0.5)
    assert storage.iter == storage.iteration == 8
    assert storage.latest()["loss"] == (2.0, 7)
    assert storage.latest()["late"] == (9.0, 100)
    assert storage.latest()["head/accuracy"] == (0.5, 8)
    assert storage.history("loss").values() == [(3.0, 5), (1.0, 6), (2.0, 7)]
    assert storage.latest_with_smoothing_hint()["loss"] == (2.0, 7)
    assert storage.latest_with_smoothing_hint(2)["loss"] == (1.5, 7)
    assert storage.latest_with_smoothing_hint(2)["lr"] == (2.0, 7)
    assert storage.smoothing_hints()["lr"] is False
    with pytest.raises(KeyError):
        storage.history("nothing")
    with pytest.raises(AssertionError, match="smoothing_hint"):
        storage.put_scalar("lr", 1.0, smoothing_hint=True)


def test_window_counts_iterations_not_values():
    with EventStorage() as storage:
        for k in range(20):
            storage.put_scalar("always", k)
            if k % 5 == 4:
                storage.put_scalar("sometimes", k)
            storage.step()
    assert storage.count_samples("always", 10) == 10
    assert storage.count_samples("sometimes", 10) == 2
    assert storage.latest_with_smoothing_hint(10)["sometimes"] == (16.5, 19)


def test_json_has_one_line_per_iteration_and_appends(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text('{"iteration": -5}\n')
    with EventStorage() as storage:
        writer = JSONWriter(str(path), window_size=1)
        for k in range(60):
            storage.put_scalar("key", k, smoothing_hint=False)
            if k % 17 == 0:
                storage.put_scalar("rare", k, smoothing_hint=False)
            if (k + 1) % 20 == 0:
                writer.write()
            storage.step()
        writer.write()  # nothing new: no line
        writer.close()
    assert read_json(path) == [
        {"iteration": -5},
        {"iteration": 19, "key": 19},
        {"iteration": 17, "rare": 17},
        {"iteration": 39, "key": 39},
        {"iteration": 34, "rare": 34},
        {"iteration": 59, "key": 59},
        {"iteration": 51, "rare": 51},
    ]


def test_metric_line(lines):
    with EventStorage() as storage:
        for k in range(3):
            storage.put_scalars(total_loss=4.0 - k, loss_box=1.25, time=2.0, data_time=0.5, speed=3.0)
            storage.put_scalar("[metric]bn", 7.0)
            storage.put_scalar("lr", 2.5e-5, smoothing_hint=False)
            storage.step()
        storage.iter = 2
        CommonMetricPrinter(10).write()
    (line,) = lines()
    assert re.fullmatch(
        r" eta: 0:00:14  iter: 2  total_loss: 3  loss_box: 1.25  \[metric\]bn: 7  time: 2.0000  last_time: 2.0000  "
        r"data_time: 0.5000  last_data_time: 0.5000   lr: 2.5e-05  (max_mem: \d+M)?",
        line,
    )
    assert storage.latest()["eta_seconds"] == (14.0, 2)


def test_metric_line_with_little_to_tell(lines):
    with EventStorage(3) as storage:
        storage.put_scalar("loss", 1.0)
        CommonMetricPrinter().write()
        storage.iter = 10
        CommonMetricPrinter(10).write()  # training is over
    (line,) = lines()
    assert "iter: 3  loss: 1" in line and "lr: N/A" in line
    assert "eta" not in line and "time" not in line


def test_tensorboard_events(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with EventStorage() as storage:
        writer = TensorboardXWriter(str(tmp_path))
        for k in range(3):
            storage.put_scalar("loss", k, smoothing_hint=False)
            storage.put_image("picture", np.zeros((3, 4, 5), dtype=np.uint8))
            storage.put_histogram("weights", torch.arange(10.0), bins=5)
            writer.write()
            storage.step()
        writer.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(0, 0.0), (1, 1.0), (2, 2.0)]
    assert [(e.width, e.height) for e in events.Images("picture")] == [(5, 4)] * 3
    assert events.Histograms("weights")[-1].histogram_value.num == 10
