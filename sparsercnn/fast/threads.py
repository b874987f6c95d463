"""Work that threads share without waiting for each other at every step.

PyTorch divides each operation among its threads, and the next one begins when all are through. On a machine that does
other work too, a thread that has to wait for a core makes the others wait as often as there are operations. Here a
thread takes a piece of the work, all operations of it, and then the next piece.
"""

import functools
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")


def share(work: Callable[[Iterator[T]], None], pieces: list[T]) -> None:
    """Call `work` in as many threads as PyTorch has, each with one iterator over `pieces` that all of them share.

    Operations within are not divided further, record no gradients and take no part in autocast.
    """
    shared = iter(pieces)
    count = torch.get_num_threads()
    if count == 1 or len(pieces) == 1:
        work(shared)
        return
    is_inference = torch.is_inference_mode_enabled()

    def run(_: int) -> None:
        # Modes belong to threads.
        with torch.no_grad(), torch.inference_mode(is_inference):
            work(shared)

    list(_workers(os.getpid(), count).map(run, range(min(count, len(pieces)))))


@functools.cache
def _workers(process: int, count: int) -> ThreadPoolExecutor:
    """Threads of a process (a fork has none of its parent's) in which operations are not divided further."""
    workers, all_started = ThreadPoolExecutor(count, thread_name_prefix="pieces"), threading.Barrier(count)

    def start(_: int) -> None:
        torch.get_num_threads()  # a thread takes over the common number when it first asks for it
        torch.set_num_threads(1)
        all_started.wait()

    list(workers.map(start, range(count)))
    # The number holds for the thread that sets it, but is also what threads start with that are made later.
    torch.set_num_threads(count)
    return workers
