"""Threads take pieces of work until none are left, each thread for itself."""

import threading

import pytest
import torch

from sparsercnn.fast.threads import share


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 2, 9])
def test_every_piece_is_taken_once(two_threads, count):
    taken = []
    share(lambda pieces: taken.extend(pieces), list(range(count)))
    assert sorted(taken) == list(range(count))


def test_threads_work_side_by_side_and_divide_nothing_further(two_threads):
    both, found = threading.Barrier(2, timeout=60), []

    def work(pieces):
        for _ in pieces:
            both.wait()
            modes = torch.get_num_threads(), torch.is_grad_enabled(), torch.is_inference_mode_enabled()
            found.append((threading.current_thread().name, *modes))

    with torch.inference_mode():
        share(work, [0, 1])
    assert len({name for name, *_ in found}) == 2
    assert all(modes == [1, False, True] for _, *modes in found)
    assert torch.get_num_threads() == 2


def test_one_thread_works_itself():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    names = []
    share(lambda pieces: names.append(threading.current_thread().name), [0, 1, 2])
    torch.set_num_threads(before)
    assert names == [threading.current_thread().name]


def test_errors_come_through(two_threads):
    def fail(pieces):
        raise ArithmeticError("in a thread")

    with pytest.raises(ArithmeticError, match="in a thread"):
        share(fail, [0, 1])
