"""Hooks that save: periodically, when a signal asks to stop, the threshold for drawing, and the best so far."""

import logging
import math
from pathlib import Path

from detectron2.engine import DefaultTrainer, HookBase
from detectron2.utils import comm

from ..evaluation.results import RESULTS, best_f1_threshold, read_results
from .interrupt import Stopped, StopSignals
from .not_finite import all_finite, training_state


class SaveCheckpoints(HookBase):
    """Saves `model_ITERATION` every so many iterations and when a signal stops training, `model_final` after the last.

    It is registered after the hooks that change the state of the training, and before those that look at it: what comes
    after it is done again when training continues from one of its checkpoints.

    Args:
        period: iterations from one checkpoint to the next.
        signals: which ask to stop.

    Attributes:
        saved: the iteration whose state was saved last; a training begins with what it continues from.
    """

    trainer: DefaultTrainer

    def __init__(self, period: int, signals: StopSignals):
        self.period = period
        self.signals = signals
        self.saved = -1

    def before_train(self) -> None:
        self.saved = self.trainer.start_iter - 1

    def after_step(self) -> None:
        """Save if it is time.

        Raises:
            Stopped: a process has received a signal.
            FloatingPointError: see `save`.
        """
        iteration = self.trainer.iter
        is_last = iteration == self.trainer.max_iter - 1
        # In a single process the signal may have come after the step.
        stop = self.signals.agreed or (self.signals.received if comm.get_world_size() == 1 else 0)
        if (iteration + 1) % self.period == 0 or (stop and not is_last):
            self.save(f"model_{iteration:07d}")
        if is_last:
            self.save("model_final")
        if stop:
            # The first process that ends takes the others down, which may be saving.
            comm.synchronize()
            raise Stopped(stop)

    def save(self, name: str) -> None:
        """Save the state of the training after its last complete iteration.

        Raises:
            FloatingPointError: a weight, a running statistic or the optimizer's state is not finite.
        """
        trainer = self.trainer
        iteration = min(trainer.iter, trainer.max_iter - 1)
        if not all_finite(training_state(trainer.model, trainer.optimizer)):
            rate = trainer.optimizer.param_groups[0]["lr"]
            raise FloatingPointError(
                f"after iteration {iteration}, at learning rate {rate:.5g}, the weights or the optimizer's state are "
                "not finite; no checkpoint was written. Continue from the last one with --resume and a lower "
                "SOLVER.BASE_LR"
            )
        trainer.checkpointer.save(name, iteration=iteration)
        self.saved = iteration

    def save_unless_saved(self) -> None:
        """Save the state after the last complete iteration, unless that is saved already."""
        iteration = min(self.trainer.iter, self.trainer.max_iter - 1)
        if iteration > self.saved:
            self.save(f"model_{iteration:07d}")


class SaveThreshold(HookBase):
    """Enters the score over which to show detections in checkpoints that are saved after an evaluation.

    That is the one with the best F1 on the evaluated data set. `model_final` is saved anew with it. It is registered
    after the evaluation and before `SaveBest`. For the main process.

    Args:
        period: iterations from one evaluation to the next, 0 for one after training only.
        dataset: registered name of the data set that is evaluated.
        folder: where the evaluation of this data set writes its files.
        checkpoints: saves.
    """

    trainer: DefaultTrainer

    def __init__(self, period: int, dataset: str, folder: Path, checkpoints: SaveCheckpoints):
        self.period = period
        self.dataset = dataset
        self.folder = folder
        self.checkpoints = checkpoints

    def before_step(self) -> None:
        # What was the best for these weights need not be for those after the step.
        self._enter(None)

    def after_step(self) -> None:
        following = self.trainer.iter + 1
        if self.period and following % self.period == 0 and following != self.trainer.max_iter:
            self._choose()

    def after_train(self) -> None:
        if self.trainer.iter == self.trainer.max_iter:
            self._choose()
            self.checkpoints.save("model_final")

    def _choose(self) -> None:
        if (self.folder / RESULTS).is_file():  # models that only propose regions leave none
            threshold = best_f1_threshold(read_results(self.dataset, self.folder))
            logging.getLogger(__name__).info(f"{self.dataset}: F1 is best with detections over {threshold:.3f}")
            self._enter(threshold)

    def _enter(self, threshold: float | None) -> None:
        self.trainer.checkpointer.metadata["score_threshold"] = threshold


class SaveBest(HookBase):
    """Saves `model_best` whenever an evaluation during training gives the best score so far. For the main process.

    Args:
        period: iterations from one evaluation to the next.
        metric: name of the score among the logged values; higher is better.
        checkpoints: saves.

    Attributes:
        best: the best score so far, None before the first.
        best_iteration: the iteration after which it was measured.
    """

    def __init__(self, period: int, metric: str, checkpoints: SaveCheckpoints):
        self.period = period
        self.metric = metric
        self.checkpoints = checkpoints
        self.best: float | None = None
        self.best_iteration = -1

    def after_step(self) -> None:
        following = self.trainer.iter + 1
        if following % self.period == 0 and following != self.trainer.max_iter:
            self._save_if_best()

    def after_train(self) -> None:
        if self.trainer.iter == self.trainer.max_iter:
            self._save_if_best()

    def _save_if_best(self) -> None:
        score, iteration = self.trainer.storage.latest().get(self.metric, (math.nan, -1))
        if not math.isfinite(score) or (self.best is not None and score <= self.best):
            return
        self.best, self.best_iteration = score, min(iteration, self.trainer.max_iter - 1)
        logging.getLogger(__name__).info(f"{self.metric} {score:.4f} is the best so far; saving model_best")
        self.checkpoints.save("model_best")

    def state_dict(self) -> dict:
        return {"best": self.best, "best_iteration": self.best_iteration}

    def load_state_dict(self, state: dict) -> None:
        self.best, self.best_iteration = state["best"], state["best_iteration"]
