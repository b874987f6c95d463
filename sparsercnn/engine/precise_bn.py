"""Precise batch norm that an interruption does not change."""

from detectron2.engine import hooks

from ..data.training import TrainingBatches


class PreciseBatchNorm(hooks.PreciseBN):
    """detectron2's precise batch norm, which every time averages over the first batches of the run.

    So the statistics follow from the weights alone, after an interruption too.

    Args:
        period, model, num_iter: as for detectron2's.
        batches: to average over. Before training they get the trainer's seed.
    """

    _data_loader: TrainingBatches

    def before_train(self) -> None:
        self._data_loader.seed = self.trainer.seed  # type: ignore[attr-defined]  # of our `Trainer`

    def update_stats(self) -> None:
        """Update the statistics of all batch norms now."""
        self._data_iter = None
        super().update_stats()
