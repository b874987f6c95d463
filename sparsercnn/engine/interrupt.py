"""Signals that ask a training to stop: Ctrl-C, SIGTERM (pre-emption), SIGHUP (the terminal is gone)."""

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Iterator
from types import FrameType, TracebackType

from detectron2.utils import comm

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# From the process that started this one. The other signals may reach both, this one surely came once.
FORWARDED = signal.SIGUSR1


def _heeded() -> list[int]:
    """Those of `STOPPING` that whoever started this process did not tell it to ignore, as nohup does with SIGHUP."""
    return [number for number in STOPPING if signal.getsignal(number) != signal.SIG_IGN]


class Stopped(KeyboardInterrupt):
    """A training stopped because a signal asked it to; nothing is lost.

    Attributes:
        code: exit status for it, 128 + number of the signal as shells have it: 130 for Ctrl-C, 143 for SIGTERM, 129 for
            SIGHUP.
    """

    def __init__(self, number: int):
        # The process that forwarded a signal knows which one it was.
        self.signal = signal.SIGTERM if number == FORWARDED else signal.Signals(number)
        self.code = 128 + self.signal
        super().__init__(self.signal.name)


class StopSignals:
    """While this context is open, the first signal is noted for the training loop, and a second one acts as ever.

    What this process was started to ignore, as nohup has it ignore SIGHUP, stays ignored.

    With several processes a second SIGTERM is ignored: whoever started them sends it to the rest as soon as one ends,
    and the rest may be saving.

    Attributes:
        received: number of the signal that came, 0 for none.
        agreed: number of a signal that any process has received, as of the last exchange between them. (In a single
            process, the training step sets it too.)
    """

    def __init__(self) -> None:
        self.received = 0
        self.agreed = 0
        self._at_once = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopSignals":
        self.received = self.agreed = 0
        for number in (*_heeded(), FORWARDED):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what `signal.signal` returned

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            if number == FORWARDED or (number == signal.SIGTERM and comm.get_world_size() > 1):
                return
            signal.signal(number, self._previous[number])  # type: ignore[arg-type]  # what `signal.signal` returned
            signal.raise_signal(number)
            return
        self.received = number
        if self._at_once:
            raise Stopped(number)
        if comm.is_main_process():
            # Not through logging, which this handler may have interrupted.
            os.write(2, b"\nStopping after this iteration, with a checkpoint. Once more stops at once.\n")

    @contextlib.contextmanager
    def act_at_once(self) -> Iterator[None]:
        """Inside, a signal raises `Stopped` at once; so does one that was noted before.

        Raises:
            Stopped: a signal came.
        """
        self._at_once = True
        try:
            if self.received:
                raise Stopped(self.received)
            yield
        finally:
            self._at_once = False


@contextlib.contextmanager
def forward_signals() -> Iterator[list[int]]:
    """Inside, signals that ask to stop go on to the processes that this one has started, which end by themselves.

    A second signal acts as ever.

    Yields:
        A list that holds the number of the first signal once it came.
    """
    received: list[int] = []
    previous = {number: signal.getsignal(number) for number in _heeded()}

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for each, handler in previous.items():
            signal.signal(each, handler)
        for process in multiprocessing.active_children():
            os.kill(process.pid, FORWARDED)  # type: ignore[arg-type]  # it was started, so it has a number

    for number in previous:
        signal.signal(number, forward)
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
