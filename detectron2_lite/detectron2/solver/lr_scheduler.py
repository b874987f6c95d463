"""Learning-rate schedules: fvcore's parameter schedulers, with warm-up, applied to an optimizer every iteration."""

import logging
import math

from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    ConstantParamScheduler,
    LinearParamScheduler,
    ParamScheduler,
)
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

logger = logging.getLogger(__name__)


class WarmupParamScheduler(CompositeParamScheduler):
    """Another scheduler after a warm-up that starts from a fraction of its first value.

    Args:
        scheduler: what follows the warm-up.
        warmup_factor: fraction of `scheduler`'s first value to start from.
        warmup_length: share of the training that warms up, in [0, 1].
        warmup_method: "linear" or "constant".
        rescale_interval: squeeze `scheduler` into the rest, instead of leaving out its first `warmup_length`.

    Raises:
        ValueError: another method.
    """

    def __init__(
        self,
        scheduler: ParamScheduler,
        warmup_factor: float,
        warmup_length: float,
        warmup_method: str = "linear",
        rescale_interval: bool = False,
    ):
        start = warmup_factor * scheduler(0.0)
        if warmup_method == "constant":
            warmup = ConstantParamScheduler(start)
        elif warmup_method == "linear":
            # where the warm-up ends, the scheduler goes on without a jump
            warmup = LinearParamScheduler(start, scheduler(0.0) if rescale_interval else scheduler(warmup_length))
        else:
            raise ValueError(f"Unknown warmup method: {warmup_method}")
        super().__init__(
            [warmup, scheduler],
            interval_scaling=["rescaled", "rescaled" if rescale_interval else "fixed"],
            lengths=[warmup_length, 1 - warmup_length],
        )


class LRMultiplier(LRScheduler):
    """Multiplies the learning rate of every parameter group by a fvcore scheduler's value.

    The optimizer's learning rates at construction are the base. Call `step` every iteration.

    Args:
        optimizer: whose learning rates to set.
        multiplier: from progress in [0, 1) to a factor. It must not have state: that would not be saved.
        max_iter: number of iterations that are progress 1.
        last_iter: the last iteration that was done, -1 for none.
    """

    def __init__(self, optimizer: Optimizer, multiplier: ParamScheduler, max_iter: int, last_iter: int = -1):
        if not isinstance(multiplier, ParamScheduler):
            raise ValueError(
                f"_LRMultiplier(multiplier=) must be an instance of fvcore ParamScheduler. Got {multiplier} instead."
            )
        self._multiplier = multiplier
        self._max_iter = max_iter
        super().__init__(optimizer, last_epoch=last_iter)

    def state_dict(self) -> dict:
        return {"base_lrs": self.base_lrs, "last_epoch": self.last_epoch}

    def get_lr(self) -> list[float]:
        factor = self._multiplier(self.last_epoch / self._max_iter)
        return [base_lr * factor for base_lr in self.base_lrs]


class _WarmupLR(LRScheduler):
    """Base of the schedules that count warm-up in iterations and multiply it with a decay that starts at 0."""

    def __init__(
        self, optimizer: Optimizer, warmup_factor: float, warmup_iters: int, warmup_method: str, last_epoch: int
    ):
        logger.warning(f"{type(self).__name__} is deprecated! Use LRMultipilier with fvcore ParamScheduler instead!")
        self.warmup_factor = warmup_factor
        self.warmup_iters = warmup_iters
        self.warmup_method = warmup_method
        super().__init__(optimizer, last_epoch)

    def _decay(self, iteration: int) -> float:
        raise NotImplementedError

    def get_lr(self) -> list[float]:
        warmup = _get_warmup_factor_at_iter(self.warmup_method, self.last_epoch, self.warmup_iters, self.warmup_factor)
        return [base_lr * warmup * self._decay(self.last_epoch) for base_lr in self.base_lrs]


class WarmupMultiStepLR(_WarmupLR):
    """Multiplies by `gamma` at every milestone. Kept for old code; `LRMultiplier` does the same.

    Raises:
        ValueError: milestones that do not increase.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        milestones: list[int],
        gamma: float = 0.1,
        warmup_factor: float = 0.001,
        warmup_iters: int = 1000,
        warmup_method: str = "linear",
        last_epoch: int = -1,
    ):
        if list(milestones) != sorted(milestones):
            raise ValueError(f"Milestones should be a list of increasing integers. Got {milestones}")
        self.milestones = milestones
        self.gamma = gamma
        super().__init__(optimizer, warmup_factor, warmup_iters, warmup_method, last_epoch)

    def _decay(self, iteration: int) -> float:
        return self.gamma ** sum(milestone <= iteration for milestone in self.milestones)


class WarmupCosineLR(_WarmupLR):
    """Falls to zero over `max_iters` along half a cosine. Kept for old code; `LRMultiplier` does the same."""

    def __init__(
        self,
        optimizer: Optimizer,
        max_iters: int,
        warmup_factor: float = 0.001,
        warmup_iters: int = 1000,
        warmup_method: str = "linear",
        last_epoch: int = -1,
    ):
        self.max_iters = max_iters
        super().__init__(optimizer, warmup_factor, warmup_iters, warmup_method, last_epoch)

    def _decay(self, iteration: int) -> float:
        return 0.5 * (1.0 + math.cos(math.pi * iteration / self.max_iters))


def _get_warmup_factor_at_iter(method: str, iter: int, warmup_iters: int, warmup_factor: float) -> float:
    """Factor of the learning rate at an iteration: from `warmup_factor` to 1 over `warmup_iters`, then 1."""
    if iter >= warmup_iters:
        return 1.0
    if method == "constant":
        return warmup_factor
    if method == "linear":
        alpha = iter / warmup_iters
        return warmup_factor * (1 - alpha) + alpha
    raise ValueError(f"Unknown warmup method: {method}")
