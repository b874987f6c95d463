"""Where the machines of one run meet, and learn that one of them has failed."""

import contextlib
import time
from datetime import timedelta
from urllib.parse import urlsplit

import torch.distributed as dist

from ...errors import InputError

# Seconds between questions whether something has happened on another machine.
PERIOD = 1.0
# Seconds that machine 0, which holds what all read, waits for the others to end; and to read why they cannot begin.
FAREWELL = 60.0
LAST_WORDS = 5.0


class Machines:
    """One machine's view of all machines of a run. Each starts processes of its own, which meet in the same store.

    Args:
        url: `tcp://HOST:PORT` of machine 0; None, on a single machine, takes a free port.
        count: number of machines.
        rank: of this machine, 0 to `count - 1`.
        processes: on each machine.
        timeout: how long to wait for the others to come.

    Attributes:
        host, port: of the store.
        store: what processes and machines tell each other.

    Raises:
        InputError: the URL cannot be used, a machine does not come, or two disagree.
    """

    def __init__(self, url: str | None, count: int, rank: int, processes: int, timeout: timedelta):
        self.count = count
        self.rank = rank
        self.timeout = timeout
        self.host, self.port = ("127.0.0.1", 0) if url is None else address(url)
        self.store = self._open(url)
        self.port = self.store.port
        self._arrive(f"{processes} on each of {count} machines")

    def _open(self, url: str | None) -> dist.TCPStore:
        hosts = self.rank == 0
        try:
            return dist.TCPStore(self.host, self.port, is_master=hosts, wait_for_workers=False, timeout=self.timeout)
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            if hosts:
                raise InputError(
                    f"--dist-url {url}: this machine, of rank 0, cannot listen there; is the port in use? ({reason})"
                ) from error
            raise InputError(
                f"--dist-url {url}: machine 0 does not answer; is it running with --machine-rank 0? ({reason})"
            ) from error

    def _arrive(self, processes: str) -> None:
        try:
            self._meet(processes)
        except InputError:
            self._wait_for("refused", min(LAST_WORDS, self.timeout.total_seconds()))
            raise
        except RuntimeError as error:
            raise InputError("machine 0 has ended; what it says is why") from error

    def _meet(self, processes: str) -> None:
        if self.store.add(f"machines/{self.rank}/come", 1) > 1:
            raise InputError(f"--machine-rank {self.rank}: another machine of this run has the same rank")
        self.store.set(f"machines/{self.rank}", processes)
        missing, deadline = list(range(self.count)), time.monotonic() + self.timeout.total_seconds()
        while missing := [rank for rank in missing if not self.store.check([f"machines/{rank}"])]:
            if time.monotonic() > deadline:
                ranks = ", ".join(map(str, missing))
                raise InputError(f"the machine(s) with --machine-rank {ranks} did not come within {self.timeout}")
            time.sleep(PERIOD)
        for rank in range(self.count):
            theirs = self.store.get(f"machines/{rank}").decode()
            if theirs != processes:
                raise InputError(f"machine {rank} was started with --num-gpus {theirs}, this one with {processes}")

    def tell_failure(self, message: str) -> None:
        """Make the other machines end their processes."""
        with contextlib.suppress(RuntimeError):  # machine 0 is gone, and the others know it
            self.store.set("failure", f"machine {self.rank}: {message}")

    def failure(self) -> str | None:
        """What another machine has told of a failure, or that machine 0 does not answer; None if all is well."""
        if self.count == 1:
            return None
        try:
            return self.store.get("failure").decode() if self.store.check(["failure"]) else None
        except RuntimeError:
            return "the connection to machine 0 is lost"

    def leave(self) -> None:
        """Say that all is done or stopped here. Machine 0 waits for the others, who may still need the store."""
        with contextlib.suppress(RuntimeError):  # machine 0 is gone
            self._wait_for("left", FAREWELL)

    def _wait_for(self, event: str, seconds: float) -> None:
        """Say that this machine is there; machine 0 waits until all are, one has failed, or the time is over."""
        here, deadline = self.store.add(event, 1), time.monotonic() + seconds
        while self.rank == 0 and here < self.count and time.monotonic() < deadline and not self.failure():
            time.sleep(PERIOD)
            here = self.store.add(event, 0)


def address(url: str) -> tuple[str, int]:
    """Host and port of a URL `tcp://HOST:PORT`.

    Raises:
        InputError: it is no such URL.
    """
    try:
        parts = urlsplit(url)
        scheme, host, port = parts.scheme, parts.hostname, parts.port
    except ValueError:  # of a port that is no number, or a bracket
        scheme, host, port = "", None, None
    if scheme != "tcp" or not host or port is None:
        raise InputError(f"--dist-url {url!r}; it must be like tcp://HOST:PORT, of the machine of rank 0")
    return host, port
