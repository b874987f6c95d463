"""What becomes of a run when one of its processes fails, is killed, or stands still."""

import multiprocessing
import os
import signal
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from detectron2.engine import default_argument_parser
from detectron2.utils import comm

from sparsercnn.engine.distributed import ranks
from sparsercnn.engine.distributed.launch import check_launch, launch
from sparsercnn.engine.distributed.ranks import ProcessFailedError
from sparsercnn.engine.interrupt import Stopped
from sparsercnn.errors import InputError
from sparsercnn.processes import report_progress, wait_for_all

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="each process gets a GPU where there are any"),
    pytest.mark.usefixtures("quick_processes"),
]
SECONDS = timedelta(seconds=60)


def start(processes, main, *main_args, timeout=SECONDS):
    args = default_argument_parser().parse_args(["--num-gpus", str(processes)])
    try:
        launch(main, args, main_args, timeout)
    finally:
        assert not multiprocessing.active_children()


def complain(what):
    raise InputError(f"{what} is wrong:\n    in one respect")


@pytest.mark.parametrize("processes", [1, 2])
def test_a_mistake_found_in_any_process_arrives_as_it_was_raised(processes):
    with pytest.raises(InputError) as raised:
        start(processes, complain, "it")
    assert str(raised.value) == "it is wrong:\n    in one respect"


def exchange_until(event):
    """What processes do all the time, until the second one fails."""
    for step in range(1000):
        if step == 3 and comm.get_rank() == 1:
            event()
        dist.all_reduce(torch.ones(1))


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def stand_still():
    os.kill(os.getpid(), signal.SIGSTOP)


def divide():
    return 1 / 0


def leave():
    raise Stopped(signal.SIGTERM)


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (die, ["process 1 of 2 was killed by SIGKILL"]),
        pytest.param(divide, ["process 1 of 2 failed:", "Traceback", "return 1 / 0"], marks=pytest.mark.slow),
        pytest.param(
            stand_still,
            ["process 0 of 2 waited 0:00:03 (DISTRIBUTED.TIMEOUT)", "process 1 of 2 is stopped"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_process_that_failed_is_named_and_the_others_end(event, words, monkeypatch):
    monkeypatch.setattr(ranks, "TERMINATION", 0.5)
    begin = time.monotonic()
    with pytest.raises(ProcessFailedError) as raised:
        start(2, exchange_until, event, timeout=timedelta(seconds=3) if event is stand_still else SECONDS)
    assert all(word in str(raised.value) for word in words), raised.value
    assert "Connection" not in str(raised.value)
    assert time.monotonic() - begin < SECONDS.total_seconds()


def test_processes_that_were_asked_to_stop_have_not_failed():
    with pytest.raises(Stopped) as raised:
        start(2, leave)
    assert raised.value.code == 128 + signal.SIGTERM


def work_for_long(patience):
    """The second process takes longer than the timeout, but gets on; then it does not."""
    if comm.get_rank() == 1:
        for _ in range(5):
            time.sleep(1)
            report_progress()
    wait_for_all()
    if comm.get_rank() == 1:
        stand_still()
    else:
        patience.touch()
    wait_for_all()


def test_who_gets_on_is_waited_for_and_who_does_not_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(ranks, "TERMINATION", 0.5)
    with pytest.raises(ProcessFailedError, match="process 1 has shown no progress for 0:00:03"):
        start(2, work_for_long, tmp_path / "patience", timeout=timedelta(seconds=3))
    assert (tmp_path / "patience").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--num-gpus 0", "--num-gpus 0"),
        ("--num-machines 0", "--num-machines 0"),
        ("--num-machines 2 --machine-rank 2 --dist-url tcp://a:1", "ranks are 0 to 1"),
        ("--num-machines 2", "needs --dist-url tcp://HOST:PORT"),
        ("--dist-url localhost:1234", "must be like tcp://HOST:PORT"),
        ("--dist-url tcp://host:port", "must be like tcp://HOST:PORT"),
        ("--dist-url tcp://[host", "must be like tcp://HOST:PORT"),
    ],
)
def test_command_lines_that_cannot_be(flags, words):
    with pytest.raises(InputError, match=words):
        check_launch(default_argument_parser().parse_args(flags.split()))
