"""Machines that meet, or say in a bounded time why they do not; each is a thread here."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from sparsercnn.engine.distributed import machines
from sparsercnn.engine.distributed.machines import Machines
from sparsercnn.errors import InputError

SECONDS = timedelta(seconds=20)
SHORT = timedelta(seconds=1)


@pytest.fixture
def url():
    """A free address of this machine."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    address = f"tcp://127.0.0.1:{store.port}"
    del store
    return address


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(machines, "PERIOD", 0.01)


def start(*arguments):
    """What becomes of machines with these arguments that are started at once."""

    def outcome(each):
        try:
            return Machines(*each)
        except InputError as error:
            return str(error)

    with ThreadPoolExecutor(len(arguments)) as pool:
        return list(pool.map(outcome, arguments))


def test_runs_on_one_machine_do_not_meet():
    first, second = start((None, 1, 0, 2, SECONDS), (None, 1, 0, 2, SECONDS))
    assert first.port != second.port
    assert first.failure() is None
    first.leave()


def test_a_failure_on_one_machine_is_known_to_the_others(url):
    first, second = start((url, 2, 0, 4, SECONDS), (url, 2, 1, 4, SECONDS))
    assert first.failure() is None and second.failure() is None
    second.tell_failure("process 7 of 8 was killed")
    assert first.failure() == "machine 1: process 7 of 8 was killed"


def test_machine_0_waits_for_the_others_before_it_leaves(url):
    first, second = start((url, 2, 0, 4, SECONDS), (url, 2, 1, 4, SECONDS))
    with ThreadPoolExecutor() as pool:
        leaving = pool.submit(first.leave)
        assert not leaving.done()
        second.leave()
        leaving.result(timeout=20)


def test_a_machine_that_does_not_come(url):
    assert "--machine-rank 1, 2 did not come" in start((url, 3, 0, 1, SHORT))[0]


def test_nobody_answers(url):
    assert f"{url}: machine 0 does not answer" in start((url, 2, 1, 1, SHORT))[0]


def test_a_port_that_is_in_use(url):
    holder = Machines(url, 1, 0, 1, SECONDS)
    assert "in use" in start((url, 1, 0, 1, SECONDS))[0]
    holder.leave()


def test_two_machines_with_one_rank(url):
    outcomes = start((url, 3, 0, 1, SHORT), (url, 3, 1, 1, SHORT), (url, 3, 1, 1, SHORT))
    assert sum("--machine-rank 1: another machine" in outcome for outcome in outcomes) == 1


def test_machines_that_disagree(url):
    first, second = start((url, 2, 0, 4, SECONDS), (url, 2, 1, 8, SECONDS))
    assert "8 on each of 2" in first and "4 on each of 2" in second
