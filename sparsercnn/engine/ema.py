"""An exponential moving average of the weights, which detects better than the weights of any one iteration.

Polyak and Juditsky, Acceleration of Stochastic Approximation by Averaging, 1992; with the warm-up of TensorFlow's
`ExponentialMovingAverage`: a ← d·a + (1 − d)·w, d = min(decay, (1 + t) / (10 + t)) after t updates.
"""

from typing import Any

import torch
from detectron2.engine import DefaultTrainer, HookBase
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

Tensors = tuple[Tensor, ...] | list[Tensor]
CHECKPOINT_KEY = "ema"
"""Under which a checkpoint holds the average, as the state of an `AveragedModel`; "model" is what training goes on
with."""


class ExponentialMovingAverage(HookBase):
    """Averages the weights and the running statistics of batch norms after every iteration.

    Args:
        model: that is trained, as it is or distributed.
        decay: what an iteration leaves of the average, in (0, 1): 0.999 averages over about 1000 iterations.

    Attributes:
        average: the averaged model, with its state; `average.module` is to be evaluated.
    """

    trainer: DefaultTrainer

    def __init__(self, model: nn.Module, decay: float):
        model = model.module if isinstance(model, DistributedDataParallel) else model
        self.model = model
        self.decay = decay
        self.average = AveragedModel(model, multi_avg_fn=self._blend, use_buffers=True)

    def after_step(self) -> None:
        self.average.update_parameters(self.model)

    @torch.no_grad()
    def _blend(self, average: Tensors, current: Tensors, updates: Tensor | int) -> None:
        decay = min(self.decay, (1 + int(updates)) / (10 + int(updates)))
        if average[0].is_floating_point():
            torch._foreach_lerp_(average, current, 1 - decay)
        else:  # counters
            torch._foreach_copy_(average, current)


def use_average(checkpoint: dict[str, Any]) -> None:
    """Make the average of a checkpoint its model, in place; one without an average stays as it is."""
    average = checkpoint.pop(CHECKPOINT_KEY, None)
    if average is not None:
        names = ((name, name.removeprefix("module.")) for name in average)
        checkpoint["model"] |= {plain: average[name] for name, plain in names if plain in checkpoint["model"]}
