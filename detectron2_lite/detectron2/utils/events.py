"""What happens in training: `EventStorage` collects it, `EventWriter`s bring it to files and the terminal."""

import datetime
import json
import logging
import os
import time
from collections import defaultdict
from contextlib import contextmanager, suppress
from functools import cached_property

import numpy as np
import torch
from fvcore.common.history_buffer import HistoryBuffer

from detectron2.utils.file_io import PathManager

__all__ = [
    "get_event_storage",
    "has_event_storage",
    "JSONWriter",
    "TensorboardXWriter",
    "CommonMetricPrinter",
    "EventStorage",
]

_CURRENT_STORAGE_STACK: list["EventStorage"] = []


def get_event_storage() -> "EventStorage":
    """The storage of the innermost `with EventStorage(...)` that runs now."""
    assert len(_CURRENT_STORAGE_STACK), (
        "get_event_storage() has to be called inside a 'with EventStorage(...)' context!"
    )
    return _CURRENT_STORAGE_STACK[-1]


def has_event_storage() -> bool:
    """Whether `get_event_storage` would return one."""
    return len(_CURRENT_STORAGE_STACK) > 0


class EventWriter:
    """Reads the current storage when `write` is called, and lets go of its files in `close`."""

    def write(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass


class JSONWriter(EventWriter):
    """Scalars as one line of JSON per iteration that has any: `{"iteration": 19, "total_loss": 1.2, ...}`.

    Lines are appended, so that a resumed training continues the file. Where one write makes several, those of scalars
    that were put first come first, whatever their iteration.
    """

    def __init__(self, json_file: str, window_size: int = 20):
        """
        Args:
            json_file: path to append to.
            window_size: iterations over which scalars with a smoothing hint are smoothed.
        """
        self._file_handle = PathManager.open(json_file, "a")
        self._window_size = window_size
        self._last_write = -1

    def write(self) -> None:
        lines: dict[int, dict] = defaultdict(dict)
        for name, (value, iteration) in get_event_storage().latest_with_smoothing_hint(self._window_size).items():
            if iteration > self._last_write:
                lines[iteration][name] = value
        if not lines:
            return
        self._last_write = max(lines)
        for iteration, scalars in lines.items():
            self._file_handle.write(json.dumps({**scalars, "iteration": iteration}, sort_keys=True) + "\n")
        self._file_handle.flush()
        with suppress(AttributeError):  # a remote file has no descriptor
            os.fsync(self._file_handle.fileno())

    def close(self) -> None:
        self._file_handle.close()


class TensorboardXWriter(EventWriter):
    """Scalars, images and histograms as TensorBoard events."""

    def __init__(self, log_dir: str, window_size: int = 20, **kwargs):
        """
        Args:
            log_dir: folder of the event file, made when something is written.
            window_size: iterations over which scalars with a smoothing hint are smoothed.
            kwargs: further arguments of `torch.utils.tensorboard.SummaryWriter`.
        """
        self._window_size = window_size
        self._writer_args = {"log_dir": log_dir, **kwargs}
        self._last_write = -1

    @cached_property
    def _writer(self):
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        return SummaryWriter(**self._writer_args)

    def write(self) -> None:
        storage = get_event_storage()
        newest = self._last_write
        for name, (value, iteration) in storage.latest_with_smoothing_hint(self._window_size).items():
            if iteration > self._last_write:
                self._writer.add_scalar(name, value, iteration)
                newest = max(newest, iteration)
        self._last_write = newest
        for name, image, iteration in storage._vis_data:
            self._writer.add_image(name, image, iteration)
        storage.clear_images()
        for histogram in storage._histograms:
            self._writer.add_histogram_raw(**histogram)
        storage.clear_histograms()

    def close(self) -> None:
        if "_writer" in self.__dict__:  # not made merely to be closed
            self._writer.close()


class CommonMetricPrinter(EventWriter):
    """One log line of progress: ETA, iteration, losses, times, learning rate and memory.

    Needs the scalars `time`, `data_time` and `lr` that the training loop and its hooks put; leaves out what is missing.
    """

    def __init__(self, max_iter: int | None = None, window_size: int = 20):
        """
        Args:
            max_iter: length of the training, for the ETA; None prints no ETA.
            window_size: iterations over which losses and times are smoothed.
        """
        self.logger = logging.getLogger("detectron2.utils.events")
        self._max_iter = max_iter
        self._window_size = window_size
        self._last_write: tuple[int, float] | None = None  # iteration and time

    def _get_eta(self, storage: "EventStorage") -> str:
        if self._max_iter is None:
            return ""
        iteration, now = storage.iter, time.perf_counter()
        remaining = self._max_iter - iteration - 1
        try:
            seconds = storage.history("time").median(1000) * remaining
            storage.put_scalar("eta_seconds", seconds, smoothing_hint=False)
        except KeyError:  # nobody measures iterations: judge by the time since the last line
            seconds = None
            if self._last_write is not None and iteration > self._last_write[0]:
                seconds = (now - self._last_write[1]) / (iteration - self._last_write[0]) * remaining
            self._last_write = (iteration, now)
        return "" if seconds is None else str(datetime.timedelta(seconds=int(seconds)))

    def _medians(self, storage: "EventStorage", word: str) -> str:
        return "  ".join(
            f"{name}: {history.median(storage.count_samples(name, self._window_size)):.4g}"
            for name, history in storage.histories().items()
            if word in name
        )

    def _times(self, storage: "EventStorage", name: str, window_size: int | None) -> str:
        """Average, over all iterations if there is no window, and latest value of a time; nothing if unmeasured."""
        try:
            history = storage.history(name)
        except KeyError:
            return ""
        average = history.avg(storage.count_samples(name, window_size)) if window_size else history.global_avg()
        return f"{name}: {average:.4f}  last_{name}: {history.latest():.4f}  "

    def write(self) -> None:
        storage = get_event_storage()
        if storage.iter == self._max_iter:
            # training is over: hooks after it may call this once more, with nothing left to report
            return
        try:
            lr = f"{storage.history('lr').latest():.5g}"
        except KeyError:
            lr = "N/A"
        eta = self._get_eta(storage)
        memory = ""
        if torch.cuda.is_available():
            memory = f"max_mem: {torch.cuda.max_memory_allocated() / 1024.0 / 1024.0:.0f}M"
        times = self._times(storage, "time", None) + self._times(storage, "data_time", self._window_size)
        self.logger.info(
            f" {f'eta: {eta}  ' if eta else ''}iter: {storage.iter}  {self._medians(storage, 'loss')}  "
            f"{self._medians(storage, '[metric]')}  {times} lr: {lr}  {memory}"
        )


class EventStorage:
    """Scalars with their history, images and histograms of a training, by name.

    Inside `with EventStorage(start_iter) as storage:` any code reaches it through `get_event_storage()`.
    """

    def __init__(self, start_iter: int = 0):
        self._history: dict[str, HistoryBuffer] = defaultdict(HistoryBuffer)
        self._smoothing_hints: dict[str, bool] = {}
        self._latest_scalars: dict[str, tuple[float, int]] = {}
        self._iter = start_iter
        self._current_prefix = ""
        self._vis_data: list[tuple[str, torch.Tensor, int]] = []
        self._histograms: list[dict] = []

    def put_image(self, img_name: str, img_tensor: torch.Tensor | np.ndarray) -> None:
        """Keep an image for the writers.

        Args:
            img_name: its name.
            img_tensor: (3, H, W) RGB, uint8 in [0, 255] or float in [0, 1].
        """
        self._vis_data.append((img_name, img_tensor, self._iter))

    def put_scalar(self, name: str, value: float, smoothing_hint: bool = True, cur_iter: int | None = None) -> None:
        """Add a value to the history of `name`.

        Args:
            name: its name, to which the current name scope is prepended.
            value: anything `float` takes.
            smoothing_hint: whether writers should smooth it, because it is noisy. Fixed for each name.
            cur_iter: iteration it belongs to, the current one by default.
        """
        name = self._current_prefix + name
        iteration = self._iter if cur_iter is None else cur_iter
        value = float(value)
        known = self._smoothing_hints.setdefault(name, smoothing_hint)
        assert known == smoothing_hint, f"Scalar {name} was put with a different smoothing_hint!"
        self._history[name].update(value, iteration)
        self._latest_scalars[name] = (value, iteration)

    def put_scalars(self, *, smoothing_hint: bool = True, cur_iter: int | None = None, **kwargs: float) -> None:
        """`put_scalar` for every keyword."""
        for name, value in kwargs.items():
            self.put_scalar(name, value, smoothing_hint=smoothing_hint, cur_iter=cur_iter)

    def put_histogram(self, hist_name: str, hist_tensor: torch.Tensor, bins: int = 1000) -> None:
        """Keep the histogram of a tensor of any shape for the writers."""
        low, high = hist_tensor.min().item(), hist_tensor.max().item()
        counts = torch.histc(hist_tensor, bins=bins)
        edges = torch.linspace(start=low, end=high, steps=bins + 1, dtype=torch.float32)
        self._histograms.append(
            dict(
                tag=hist_name,
                min=low,
                max=high,
                num=len(hist_tensor),
                sum=float(hist_tensor.sum()),
                sum_squares=float(torch.sum(hist_tensor**2)),
                bucket_limits=edges[1:].tolist(),
                bucket_counts=counts.tolist(),
                global_step=self._iter,
            )
        )

    def history(self, name: str) -> HistoryBuffer:
        """All values of a scalar. KeyError if there are none."""
        if name not in self._history:
            raise KeyError(f"No history metric available for {name}!")
        return self._history[name]

    def histories(self) -> dict[str, HistoryBuffer]:
        """All scalars with their values."""
        return self._history

    def latest(self) -> dict[str, tuple[float, int]]:
        """The last value of each scalar and its iteration."""
        return self._latest_scalars

    def latest_with_smoothing_hint(self, window_size: int = 20) -> dict[str, tuple[float, int]]:
        """Like `latest`, but the median over the window where the scalar's hint says so."""
        return {
            name: (
                self._history[name].median(self.count_samples(name, window_size))
                if self._smoothing_hints[name]
                else value,
                iteration,
            )
            for name, (value, iteration) in self._latest_scalars.items()
        }

    def count_samples(self, name: str, window_size: int = 20) -> int:
        """How many values of `name` fall in the last `window_size` iterations before its newest one."""
        values = self._history[name].values()
        newest = values[-1][1]
        samples = 0
        for _, iteration in reversed(values):
            if iteration <= newest - window_size:
                break
            samples += 1
        return samples

    def smoothing_hints(self) -> dict[str, bool]:
        """Whether each scalar is to be smoothed."""
        return self._smoothing_hints

    def step(self) -> None:
        """Go to the next iteration. Call it after everything of this one was put."""
        self._iter += 1

    @property
    def iter(self) -> int:
        """The current iteration, also while hooks run after a step."""
        return self._iter

    @iter.setter
    def iter(self, val: int) -> None:
        self._iter = int(val)

    @property
    def iteration(self) -> int:
        """Another name of `iter`."""
        return self._iter

    def __enter__(self) -> "EventStorage":
        _CURRENT_STORAGE_STACK.append(self)
        return self

    def __exit__(self, exc_type, exc_val, exc_tb) -> None:
        assert _CURRENT_STORAGE_STACK[-1] == self
        _CURRENT_STORAGE_STACK.pop()

    @contextmanager
    def name_scope(self, name: str):
        """Prepend `name/` to the scalars put inside."""
        outer = self._current_prefix
        self._current_prefix = name.rstrip("/") + "/"
        try:
            yield
        finally:
            self._current_prefix = outer

    def clear_images(self) -> None:
        """Forget the images; a writer does so after it wrote them."""
        self._vis_data = []

    def clear_histograms(self) -> None:
        """Forget the histograms; a writer does so after it wrote them."""
        self._histograms = []
