"""How the processes of a run meet, and how they wait for one that is slow but must not be gone.

A collective operation waits for `DISTRIBUTED.TIMEOUT` and no longer, because a process that stands still would hold up
the others for ever. Where one process works for long while the others wait, as in an evaluation, they look at its
progress instead: it may take hours, as long as it gets on.
"""

import contextlib
import itertools
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from detectron2.utils import comm

# Seconds between signs of progress, and the longest between looks at those of others.
REPORT_PERIOD = 1.0
TRAIN_LOOP_LOGGER = "detectron2.engine.train_loop"


class ProcessGoneError(RuntimeError):
    """Another process of the run has failed, was killed, or stands still."""


@dataclass
class _Meeting:
    """What the processes of this run share."""

    store: dist.Store
    timeout: timedelta
    numbers: Iterator[int] = field(default_factory=itertools.count)
    reported: float = -REPORT_PERIOD


_meeting: _Meeting | None = None


@contextlib.contextmanager
def joined_processes(
    store: dist.Store, rank: int, processes: int, local_processes: int, timeout: timedelta
) -> Iterator[None]:
    """Inside, this process is one of several that can communicate. All come in and leave together, unless one fails.

    Args:
        store: where they meet.
        rank: of this process among all.
        processes: how many there are.
        local_processes: how many there are on this machine.
        timeout: after which a collective operation fails.
    """
    global _meeting
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    group_store = dist.PrefixStore("group", store)
    dist.init_process_group(backend, store=group_store, rank=rank, world_size=processes, timeout=timeout)
    comm.create_local_process_group(local_processes)
    _meeting = _Meeting(dist.PrefixStore("progress", store), timeout)
    wait_for_all()
    # Its traceback would bury that of the process that failed.
    logging.getLogger(TRAIN_LOOP_LOGGER).addFilter(_says_what_went_wrong)
    yield
    wait_for_all()
    # Where the first process holds the store (no torchrun that does), it must not end before the others have looked.
    dist.barrier()
    _meeting = None
    dist.destroy_process_group()


def _says_what_went_wrong(record: logging.LogRecord) -> bool:
    return not (record.exc_info and is_lost_connection(record.exc_info[1]))


def report_progress() -> None:
    """Let those who wait for this process know that it gets on. May be called often."""
    meeting = _meeting
    if meeting is not None and time.monotonic() - meeting.reported >= REPORT_PERIOD:
        meeting.reported = time.monotonic()
        meeting.store.add(f"reports/{comm.get_rank()}", 1)


@contextlib.contextmanager
def reporting_progress() -> Iterator[None]:
    """Inside, a thread reports progress all the time: for work that cannot do so itself."""
    over = threading.Event()

    def report() -> None:
        while not over.wait(REPORT_PERIOD):
            report_progress()

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def wait_for_all() -> None:
    """Wait until all processes are here, for as long as each that is not reports progress.

    Raises:
        ProcessGoneError: one has not for the timeout of the run.
    """
    meeting = _meeting
    if meeting is None:  # alone, or started by other means
        return comm.synchronize()
    place = f"here/{next(meeting.numbers)}"
    meeting.store.set(f"{place}/{comm.get_rank()}", "")
    awaited = list(range(comm.get_world_size()))
    last: dict[int, tuple[int, float]] = {}  # number of reports, and when it was new
    pause = 0.001
    while awaited := [rank for rank in awaited if not meeting.store.check([f"{place}/{rank}"])]:
        now = time.monotonic()
        for rank in awaited:
            reports = meeting.store.add(f"reports/{rank}", 0)
            if rank not in last or last[rank][0] != reports:
                last[rank] = reports, now
            elif now - last[rank][1] > meeting.timeout.total_seconds():
                raise ProcessGoneError(
                    f"process {rank} has shown no progress for {meeting.timeout} (DISTRIBUTED.TIMEOUT): it is stopped, "
                    "hangs, or its machine is gone"
                )
        time.sleep(pause)
        pause = min(2 * pause, REPORT_PERIOD)


def is_lost_connection(error: BaseException | None) -> bool:
    """Whether an error says that another process is gone, and not what went wrong there."""
    if isinstance(error, ProcessGoneError | dist.DistError):
        return True
    # Gloo's are plain errors, with the place in its source that they come from.
    return isinstance(error, RuntimeError) and "/gloo/" in str(error)


def describe_loss(error: BaseException, timeout: timedelta) -> str:
    """What a process can say for which `is_lost_connection` is true, to follow its name; `timeout` is the run's."""
    if isinstance(error, ProcessGoneError):
        return f"ended: {error}"
    if "timed out" in str(error).lower() or "timeout" in str(error).lower():
        return (
            f"waited {timeout} (DISTRIBUTED.TIMEOUT) for another process, which is stopped, hangs, is out of reach or "
            "takes longer than that"
        )
    return "lost the connection to another process, which has ended; what that process says itself is why"
