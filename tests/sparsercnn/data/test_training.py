"""Training samples follow from the seed and their position alone, however they are loaded."""

import itertools
import os
import random
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from sparsercnn.data import order
from sparsercnn.data.training import (
    BAD_IN_A_ROW,
    REPLACED,
    ReplacedImages,
    TrainingBatches,
    build_training_batches,
    is_wide,
    take_replaced,
)
from sparsercnn.errors import InputError

RECORDS = [{"file_name": f"{i}.png", "width": 4 + i % 3, "height": 5} for i in range(11)]


def drawn(record):
    """A mapper that draws from every generator."""
    numbers = [random.random(), float(np.random.rand()), float(torch.rand(()))]
    return {"file_name": record["file_name"], "numbers": numbers}


def broken(record):
    """A mapper that cannot read 3.png and 4.png."""
    if record["file_name"] in ("3.png", "4.png"):
        random.random()
        raise InputError(f"cannot read image {record['file_name']}: truncated")
    return drawn(record)


def batches(mapper=drawn, workers=0, start=0, seed=5, groups=None, count=8, skip=False, size=4):
    loader = TrainingBatches(
        RECORDS,
        mapper,
        lambda seed: order.shuffled(len(RECORDS)),
        size,
        groups=groups,
        num_workers=workers,
        skip_bad_images=skip,
    )
    loader.seed, loader.start = seed, start
    return list(itertools.islice(loader, count))


@pytest.mark.parametrize("groups", [None, is_wide(RECORDS)])
def test_order_and_numbers_are_the_same_for_any_number_of_workers_and_from_any_start(groups):
    expected = batches(groups=groups)
    assert len({tuple(sample["numbers"]) for batch in expected for sample in batch}) == 32
    for workers in (1, 2, 4):
        assert batches(workers=workers, groups=groups) == expected
    assert batches(workers=2, start=3, groups=groups, count=5) == expected[3:]
    assert batches(start=3, groups=groups, count=5) == expected[3:]


def test_loading_leaves_the_generators_of_this_process_alone():
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    batches()
    batches(workers=1)
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == states


def kill_me(record):
    """A mapper to which a stranger sends the signals of a terminal and of a job manager."""
    for number in ("INT", "HUP", "TERM"):
        subprocess.run(["sh", "-c", f"kill -{number} {os.getpid()}"], check=True)
    return drawn(record)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="other systems cannot say what a process blocks")
def test_workers_leave_signals_to_their_parent_and_end_with_it():
    assert batches(kill_me, workers=1, count=1) == batches(count=1)
    loader = iter(TrainingBatches(RECORDS, drawn, lambda seed: order.shuffled(len(RECORDS)), 2, num_workers=1))
    (worker,) = loader._workers
    # What came before it could do anything would have ended it.
    status = dict(line.split(":\t") for line in Path(f"/proc/{worker.pid}/status").read_text().splitlines())
    assert int(status["SigBlk"], 16) & 1 << signal.SIGTERM - 1
    next(loader)
    worker.terminate()
    worker.join(10)
    assert worker.exitcode == 0


def test_another_seed_gives_another_order_and_other_numbers():
    assert batches(seed=6) != batches(seed=5)


def test_an_image_comes_augmented_otherwise_in_the_next_pass():
    samples = [sample for batch in batches() for sample in batch if sample["file_name"] == "2.png"]
    assert len(samples) > 1 and samples[0]["numbers"] != samples[1]["numbers"]


def test_processes_share_the_batches_of_one(monkeypatch):
    (whole,) = batches(count=1)
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 2)
    shares = []
    for rank in (0, 1):
        monkeypatch.setattr("detectron2.utils.comm.get_rank", lambda rank=rank: rank)
        shares += batches(count=1)
    assert shares == [whole[0::2], whole[1::2]]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_cannot_be_read_stops_or_is_replaced_by_the_next_that_can(workers):
    with pytest.raises(InputError, match=r"^cannot read image [34].png: truncated$"):
        batches(broken, workers)
    good, mended = batches(), batches(broken, workers, skip=True)
    for before, after in zip(itertools.chain(*good), itertools.chain(*mended), strict=True):
        if before["file_name"] in ("3.png", "4.png"):
            assert after["file_name"] == "5.png" and after["numbers"] == before["numbers"]
            assert after[REPLACED][0] == (before["file_name"], f"cannot read image {before['file_name']}: truncated")
        else:
            assert after == before


def test_a_data_set_without_a_readable_image_is_an_error():
    def unreadable(record):
        raise InputError(f"cannot read image {record['file_name']}")

    with pytest.raises(InputError, match="11 images in a row cannot be read; the first: cannot read image"):
        batches(unreadable, skip=True)
    assert len(RECORDS) < BAD_IN_A_ROW


def test_replaced_images_are_counted_and_each_is_named_once(caplog):
    samples = [{REPLACED: [("a", "cannot read a")]}, {}, {REPLACED: [("a", "cannot read a"), ("b", "cannot read b")]}]
    found = take_replaced(samples)
    assert samples == [{}, {}, {}] and take_replaced(samples) == []
    replaced = ReplacedImages()
    replaced.report(found[:1])
    resumed = ReplacedImages()
    resumed.load_state_dict(replaced.state_dict())
    resumed.report(found[1:])
    assert resumed.count == 3
    lines = [record.getMessage() for record in caplog.records]
    assert [line.split(";")[0] for line in lines] == ["cannot read a", "cannot read b"]
    assert "(2 bad images so far)" in lines[1]


@pytest.mark.parametrize(("key", "name"), [("SAMPLER_TRAIN", "Sampler"), ("BAD_IMAGES", "ignore")])
def test_unknown_choices(key, name):
    from sparsercnn import load_config

    with pytest.raises(InputError, match=f"DATALOADER.{key} is '{name}'"):
        build_training_batches(load_config(options=[f"DATALOADER.{key}", name]), drawn)
