"""The line that training prints from time to time."""

import datetime
import logging
from collections.abc import Collection

import torch
from detectron2.utils.events import EventStorage, EventWriter, get_event_storage

from ..memory import resident_memory


class ProgressLine(EventWriter):
    """Logs time left, iteration, total loss, the losses of the last stage, learning rate and peak memory.

    The losses of earlier stages and of auxiliary pyramids, whose names extend that of a loss (`loss_ce_0` is of the
    first stage), are left to the other writers.

    Args:
        max_iter: iterations of the whole training.
        window_size: iterations over whose median losses are smoothed.
    """

    def __init__(self, max_iter: int, window_size: int = 20):
        # The one that detectron2 logs its own line to, so that it goes to the same terminal and file.
        self.logger = logging.getLogger("detectron2.utils.events")
        self.max_iter = max_iter
        self.window_size = window_size

    def write(self) -> None:
        """Log the line for the current iteration; nothing after the last one, when hooks write once more."""
        storage = get_event_storage()
        if storage.iter == self.max_iter:
            return
        words = [f"iter: {storage.iter}", *self._losses(storage), f"max_mem: {_peak_mebibytes():.0f}M"]
        if "lr" in storage.histories():
            words.insert(-1, f"lr: {storage.history('lr').latest():.5g}")
        # The first iterations are not timed, because they are slower than the rest.
        if "time" in storage.histories():
            seconds = storage.history("time").median(1000) * (self.max_iter - storage.iter - 1)
            storage.put_scalar("eta_seconds", seconds, smoothing_hint=False)
            words.insert(0, f"eta: {datetime.timedelta(seconds=int(seconds))}")
        self.logger.info("  ".join(words))

    def _losses(self, storage: EventStorage) -> list[str]:
        shown = final_losses(list(storage.histories()))
        shown.sort(key=lambda name: name != "total_loss")
        return [f"{name}: {storage.history(name).median(self.window_size):.4g}" for name in shown]


def final_losses(names: Collection[str]) -> list[str]:
    """Of the names of metrics, those of losses that extend no other: without earlier stages and auxiliary pyramids."""
    losses = [name for name in names if "loss" in name]
    return [name for name in losses if not any(name.startswith(f"{shorter}_") for shorter in losses)]


def _peak_mebibytes() -> float:
    """Of the GPU's tensors, or of this process where there is no GPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resident_memory("HWM")
