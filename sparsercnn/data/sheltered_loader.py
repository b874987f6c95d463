"""Loading processes that signals do not reach: who asks a training to stop may send the signal to all its processes."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader, Dataset

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class ShelteredLoader(DataLoader):
    """A DataLoader whose processes leave SIGINT, SIGTERM and SIGHUP to this one, which needs them to finish its work.

    They obey SIGTERM from this process alone, and end as soon as it does, however it does.

    Args:
        dataset: to load from.
        options: further arguments of `DataLoader`, but for `worker_init_fn`.
    """

    def __init__(self, dataset: Dataset, **options: Any):
        super().__init__(dataset, worker_init_fn=_leave_signals_to_parent, **options)

    def __iter__(self) -> Any:
        # Signals may come before a process has done anything.
        with _blocked():
            return super().__iter__()


@contextlib.contextmanager
def _blocked() -> Iterator[None]:
    """Inside, signals wait; so they do in processes that are forked here."""
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _leave_signals_to_parent(worker: int) -> None:
    # SIGTERM from the parent is not told from others where there is no sigwaitinfo, on macOS.
    waits = hasattr(signal, "sigwaitinfo")
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if waits:
        threading.Thread(target=_end_when_parent_asks, daemon=True).start()
    else:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_when_parent_asks() -> None:
    parent = multiprocessing.parent_process()
    while parent and signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
        pass
    os._exit(0)


def _end_with_parent() -> None:
    """By itself it would look for its parent every few seconds, and then complain of files that are gone."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(0)
