"""A hook for precise batch norm; `detectron2.engine.hooks` exports it."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable

from fvcore.nn.precise_bn import get_bn_modules, update_bn_stats
from torch import nn

from detectron2.utils.events import EventStorage

from .train_loop import HookBase


class PreciseBN(HookBase):
    """Replace the moving averages of batch norm by true averages over `num_iter` batches with the current weights.

    Register it before the `EvalHook`, which then evaluates with the precise statistics.

    Args:
        period: update every this many iterations, 0 to update after the last one only.
        model: its batch norm layers in training mode are updated.
        data_loader: yields inputs of the model; it has to be one of its own, not the training loader.
        num_iter: number of batches per update.
    """

    def __init__(self, period: int, model: nn.Module, data_loader: Iterable, num_iter: int) -> None:
        self._logger = logging.getLogger(__name__)
        self._disabled = len(get_bn_modules(model)) == 0
        if self._disabled:
            self._logger.info("PreciseBN is disabled because model does not contain BN layers in training mode.")
        self._period = period
        self._model = model
        self._data_loader = data_loader
        self._num_iter = num_iter
        self._data_iter = None

    def after_step(self) -> None:
        next_iter = self.trainer.iter + 1
        if next_iter == self.trainer.max_iter or (self._period > 0 and next_iter % self._period == 0):
            self.update_stats()

    def update_stats(self) -> None:
        """Update the statistics now."""
        if self._disabled:
            return
        if self._data_iter is None:
            self._data_iter = iter(self._data_loader)

        def batches():
            for i in itertools.count(1):
                if i % 100 == 0:
                    self._logger.info(f"Running precise-BN ... {i}/{self._num_iter} iterations.")
                yield next(self._data_iter)

        # What the model logs in these passes is not part of training.
        with EventStorage():
            self._logger.info(
                f"Running precise-BN for {self._num_iter} iterations...  "
                "Note that this could produce different statistics every time."
            )
            update_bn_stats(self._model, batches(), self._num_iter)
