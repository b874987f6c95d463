"""Ctrl-C during training: finish the iteration, save, stop."""

import signal
from types import FrameType

from detectron2.engine import DefaultTrainer, HookBase
from detectron2.utils import comm


class StopAtInterrupt(HookBase):
    """On the first interrupt, saves a checkpoint after the current iteration and raises `KeyboardInterrupt`.

    A second interrupt stops at once. With several processes every interrupt does: they get the signal in different
    iterations, and one that stops would leave the others waiting.
    """

    trainer: DefaultTrainer

    def before_train(self) -> None:
        self.interrupted = False
        if comm.get_world_size() == 1:
            self.previous = signal.signal(signal.SIGINT, self._note)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.interrupted = True
        signal.signal(signal.SIGINT, self.previous)

    def after_step(self) -> None:
        if self.interrupted:
            iteration = self.trainer.iter
            self.trainer.checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
            raise KeyboardInterrupt

    def after_train(self) -> None:
        if comm.get_world_size() == 1:
            signal.signal(signal.SIGINT, self.previous)
