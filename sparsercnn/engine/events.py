"""What training logs: kept in memory only as long as needed, carried over an interruption, and in metrics.json once."""

import contextlib
import json
import os
from collections import defaultdict
from typing import TextIO

from detectron2.engine.hooks import PeriodicWriter
from detectron2.utils.events import EventStorage, EventWriter, get_event_storage
from fvcore.common.history_buffer import HistoryBuffer

from ..errors import InputError
from ..files import write_whole

# Iterations over whose median `metrics.json` smooths noisy values.
WINDOW = 20
# Values kept of each name: the progress line estimates the time left from the median of so many.
KEPT = 1000
MEASURED = ("time", "data_time", "rank_data_time", "eta_seconds")
"""What differs between two runs that are otherwise the same, because it was measured."""


class RunEvents(EventStorage):
    """detectron2's storage of logged values, which forgets old ones and goes into checkpoints.

    Its state has the values that smoothing will need, so that a training that continues logs what it would have logged.
    """

    def __init__(self, start_iter: int = 0):
        super().__init__(start_iter)
        self._history = defaultdict(lambda: HistoryBuffer(KEPT))

    def state_dict(self) -> dict:
        """{name: {"smoothed", "values": [[value, iteration], …]}}, without what was measured."""
        return {
            name: {
                "smoothed": smoothed,
                "values": [list(pair) for pair in self.history(name).values()[-WINDOW if smoothed else -1 :]],
            }
            for name, smoothed in self.smoothing_hints().items()
            if name not in MEASURED
        }

    def load_state_dict(self, state: dict) -> None:
        for name, saved in state.items():
            for value, iteration in saved["values"]:
                self.put_scalar(name, value, smoothing_hint=saved["smoothed"], cur_iter=int(iteration))


class MetricsFile(EventWriter):
    """One line of JSON for each iteration that has values: `{"iteration": 19, "lr": 0.0001, "total_loss": 1.2, …}`.

    As detectron2's `metrics.json`, but that a training which continues adds no iteration twice.

    Args:
        path: the file, to which lines are added.
    """

    def __init__(self, path: str):
        self.path = path
        self._file: TextIO | None = None
        self._last_written = -1

    def start_from(self, iteration: int) -> None:
        """Remove from the file what is no whole line, and the lines of this and later iterations.

        The lines that stay count as written.
        """
        kept = []
        with contextlib.suppress(FileNotFoundError), open(self.path, encoding="utf-8", errors="replace") as file:
            kept = [line for line in file if -1 < _iteration_of(line) < iteration]
        write_whole(self.path, lambda file: file.write("".join(kept).encode()))
        self._last_written = max(map(_iteration_of, kept), default=-1)

    def write(self) -> None:
        """Add a line for each iteration later than the last line's that has values.

        Raises:
            InputError: the file cannot be written to.
        """
        lines: dict[int, dict[str, float]] = defaultdict(dict)
        for name, (value, iteration) in get_event_storage().latest_with_smoothing_hint(WINDOW).items():
            if iteration > self._last_written:
                lines[iteration][name] = value
        if not lines:
            return
        self._last_written = max(lines)
        text = "".join(json.dumps({**lines[i], "iteration": i}, sort_keys=True) + "\n" for i in sorted(lines))
        try:
            self._file = self._file or open(self.path, "a", encoding="utf-8")
            self._file.write(text)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise InputError(f"cannot write {self.path}: {error.strerror}") from error

    def close(self) -> None:
        if self._file:
            self._file.close()


class WriteEvents(PeriodicWriter):
    """detectron2's hook that writes every 20 iterations, and continues a `MetricsFile` where the checkpoint was saved.

    It also writes after each evaluation. The results would else be written by a training that is asked to stop, but
    replaced by those of the next evaluation in one that goes on.

    Args:
        writers: what to write with. They are closed after training.
        eval_period: iterations from one evaluation to the next, 0 for none.
    """

    def __init__(self, writers: list[EventWriter], eval_period: int):
        super().__init__(writers, period=20)
        self.eval_period = eval_period

    def before_train(self) -> None:
        for writer in self._writers:
            if isinstance(writer, MetricsFile):
                # The line of the checkpoint's own iteration is written again.
                writer.start_from(self.trainer.start_iter - 1)

    def after_step(self) -> None:
        if self.eval_period and (self.trainer.iter + 1) % self.eval_period == 0:
            for writer in self._writers:
                writer.write()
        else:
            super().after_step()


def _iteration_of(line: str) -> int:
    """-1 if the line is not whole."""
    try:
        return int(json.loads(line)["iteration"]) if line.endswith("\n") else -1
    except (ValueError, TypeError, KeyError):
        return -1
