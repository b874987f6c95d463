"""The processes of a run on one machine: what each does, and what happens when one fails."""

import contextlib
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import NoReturn

import torch
import torch.distributed as dist

from ...errors import InputError
from ...processes import describe_loss, is_lost_connection, joined_processes
from ..interrupt import FORWARDED, STOPPING, Stopped
from .machines import PERIOD, Machines

# Seconds in which the other processes, one having failed, save what they can and end by themselves; and in which they
# end when they are told to.
GRACE = 30.0
TERMINATION = 10.0


class ProcessFailedError(RuntimeError):
    """A process of the run failed; the message says which and why, perhaps with a traceback on further lines."""


@dataclass
class Report:
    """How a process ended that did not end well.

    Args:
        kind: "mistake" for an `InputError`, "stop" where a signal asked for it, "lost" where it misses another
            process, "failure" for all else.
        text: for the user; of a stop, the number of the signal.
    """

    kind: str
    text: str


@dataclass
class Rank:
    """What one process has to know.

    Args:
        rank, processes: its number among all, and how many there are.
        local_rank, local_processes: the same on this machine.
        host, port: of the store where they meet.
        timeout: of collective operations.
        start_method: how processes start others that load images.
    """

    rank: int
    processes: int
    local_rank: int
    local_processes: int
    host: str
    port: int
    timeout: timedelta
    start_method: str

    def __str__(self) -> str:
        return f"process {self.rank} of {self.processes}"

    def run(self, report: Connection, main: Callable[..., None], main_args: tuple) -> None:
        """Do the work of this process, in it; ends the process with a status other than 0 and a report on failure."""
        threading.Thread(target=_stop_with_parent, daemon=True).start()
        # A process starts others as it was started itself, unless told otherwise.
        multiprocessing.set_start_method(self.start_method, force=True)
        try:
            if torch.cuda.is_available():
                torch.cuda.set_device(self.local_rank)
            store = dist.TCPStore(self.host, self.port, is_master=False, timeout=self.timeout)
            with joined_processes(store, self.rank, self.processes, self.local_processes, self.timeout):
                main(*main_args)
        except InputError as error:
            report.send(Report("mistake", str(error)))
            sys.exit(2)
        except KeyboardInterrupt as stop:
            sys.exit(stop.code if isinstance(stop, Stopped) else 128 + signal.SIGINT)
        except Exception as error:
            if is_lost_connection(error):
                report.send(Report("lost", f"{self} {describe_loss(error, self.timeout)}"))
            else:
                report.send(Report("failure", f"{self} failed:\n{traceback.format_exc().rstrip()}"))
            sys.exit(1)


def _stop_with_parent() -> None:
    """Nobody would end the processes of a run whose starter was killed: then they save and stop as for SIGTERM."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


class Ranks:
    """The processes of this machine.

    Args:
        ranks: what each is told; they are started.
        main, main_args: what each does.
        machines: this and the others of the run.
    """

    def __init__(self, ranks: list[Rank], main: Callable[..., None], main_args: tuple, machines: Machines):
        self.ranks = ranks
        self.machines = machines
        self.processes: list[BaseProcess] = []
        self.reports: list[Connection] = []
        context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
        for rank in ranks:
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=rank.run, args=(theirs, main, main_args), name=f"rank {rank.rank}")
            process.start()
            theirs.close()
            self.processes.append(process)
            self.reports.append(ours)

    def wait(self) -> None:
        """Wait until all have ended. When one fails, the others end within a minute.

        Raises:
            InputError: one found a mistake of the user.
            ProcessFailedError: one failed, here or on another machine.
            Stopped: they were asked to stop, and have.
        """
        failures: dict[int, Report] = {}
        elsewhere, deadline, standing = None, math.inf, []
        try:
            while running := self._running():
                wait([self.processes[i].sentinel for i in running], PERIOD)
                elsewhere = elsewhere or self.machines.failure()
                self._note(failures)
                if deadline == math.inf and (failures or elsewhere):
                    stops = any(report.kind == "stop" for report in failures.values())
                    deadline = time.monotonic() + (self.machines.timeout.total_seconds() if stops else GRACE)
                standing = [i for i in self._running() if _stands_still(self.processes[i])]
                if time.monotonic() > deadline or (failures and standing == self._running()):
                    break
            self._note(failures)
        finally:
            self._end_all()
        if failures or elsewhere:
            self._raise(list(failures.values()), elsewhere, standing)

    def _note(self, failures: dict[int, Report]) -> None:
        """Add what those have to say that have ended badly since."""
        failures |= {i: self._report(i) for i, p in enumerate(self.processes) if p.exitcode and i not in failures}

    def _running(self) -> list[int]:
        return [i for i, process in enumerate(self.processes) if process.exitcode is None]

    def _report(self, i: int) -> Report:
        """Of a process that has ended badly, perhaps without a word."""
        with contextlib.suppress(EOFError):
            if self.reports[i].poll():
                return self.reports[i].recv()
        code = self.processes[i].exitcode
        assert code is not None
        if code == -FORWARDED or code - 128 in STOPPING:
            return Report("stop", str(abs(code) % 128))
        if code > 0:
            return Report("failure", f"{self.ranks[i]} exited with status {code}")
        name = signal.Signals(-code).name
        hint = " (by somebody, a scheduler, or the kernel for want of memory)" if -code == signal.SIGKILL else ""
        return Report("failure", f"{self.ranks[i]} was killed by {name}{hint}")

    def _end_all(self) -> None:
        """Ask those that still run to end, then kill them: one that is stopped hears nothing else."""
        for end in (BaseProcess.terminate, BaseProcess.kill):
            for i in self._running():
                end(self.processes[i])
            deadline = time.monotonic() + TERMINATION
            while (running := self._running()) and time.monotonic() < deadline:
                wait([self.processes[i].sentinel for i in running], PERIOD)

    def _raise(self, failures: list[Report], elsewhere: str | None, standing: list[int]) -> NoReturn:
        """Raise what went wrong first; who lost the connection to another process knows the least."""
        for report in failures:
            if report.kind == "stop":
                raise Stopped(int(report.text))
        first = next((report for report in failures if report.kind != "lost"), None)
        if first is None and elsewhere is not None:
            raise ProcessFailedError(f"stopped because another machine did: {elsewhere}")
        first = first or failures[0]
        self.machines.tell_failure(first.text)
        if first.kind == "mistake":
            raise InputError(first.text)
        stopped = "".join(f"; {self.ranks[i]} is stopped, as by SIGSTOP" for i in standing)
        raise ProcessFailedError(first.text + stopped)


def _stands_still(process: BaseProcess) -> bool:
    """Whether a process has been stopped by a signal; False where the system cannot say."""
    with contextlib.suppress(OSError), open(f"/proc/{process.pid}/stat") as file:
        # The state follows the name in parentheses, which may hold anything.
        return file.read().rpartition(")")[2].split()[0] in ("T", "t")
    return False
