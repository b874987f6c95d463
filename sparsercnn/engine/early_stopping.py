"""A training that ends when it gets no better."""

import logging

from detectron2.engine import DefaultTrainer, HookBase
from detectron2.utils import comm

from .saving import SaveBest


class EarlyStopping(HookBase):
    """Ends training, with `model_final`, after so many evaluations without a better score than the best.

    It is registered after `SaveBest`, in every process. A run that ended so and is resumed ends at once.

    Args:
        patience: evaluations.
        best: of which the scores are.
    """

    trainer: DefaultTrainer

    def __init__(self, patience: int, best: SaveBest):
        self.patience = patience
        self.best = best

    def after_step(self) -> None:
        following = self.trainer.iter + 1
        if following % self.best.period or following >= self.trainer.max_iter:
            return
        without = (following - 1 - self.best.best_iteration) // self.best.period
        # Only the main process evaluates.
        if comm.all_gather(self.best.best is not None and without >= self.patience)[0]:
            logging.getLogger(__name__).info(
                f"No better {self.best.metric} in {self.patience} evaluations: training ends after iteration "
                f"{following - 1}, the best was iteration {self.best.best_iteration} (model_best.pth)"
            )
            self.best.checkpoints.save("model_final")
            self.trainer.max_iter = following
