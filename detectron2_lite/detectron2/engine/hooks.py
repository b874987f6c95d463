"""Hooks for the training loop: timing, logging, checkpoints, learning rate, evaluation, precise batch norm."""

from __future__ import annotations

import datetime
import logging
import math
import operator
import time
from collections import Counter
from collections.abc import Callable

import torch
from fvcore.common.checkpoint import Checkpointer
from fvcore.common.checkpoint import PeriodicCheckpointer as _PeriodicCheckpointer
from fvcore.common.param_scheduler import ParamScheduler
from fvcore.common.timer import Timer

from detectron2.evaluation.testing import flatten_results_dict
from detectron2.solver import LRMultiplier
from detectron2.utils import comm
from detectron2.utils.events import EventWriter

from .precise_bn import PreciseBN
from .profiling import TorchMemoryStats, TorchProfiler
from .train_loop import HookBase

__all__ = [
    "CallbackHook",
    "IterationTimer",
    "PeriodicWriter",
    "PeriodicCheckpointer",
    "BestCheckpointer",
    "LRScheduler",
    "EvalHook",
    "PreciseBN",
    "TorchProfiler",
    "TorchMemoryStats",
]


class CallbackHook(HookBase):
    """Call the given functions, each with the trainer as its only argument."""

    def __init__(
        self,
        *,
        before_train: Callable | None = None,
        after_train: Callable | None = None,
        before_step: Callable | None = None,
        after_step: Callable | None = None,
    ) -> None:
        self._before_train = before_train
        self._after_train = after_train
        self._before_step = before_step
        self._after_step = after_step

    def before_train(self) -> None:
        if self._before_train:
            self._before_train(self.trainer)

    def after_train(self) -> None:
        if self._after_train:
            self._after_train(self.trainer)
        # Functions may be closures that hold the trainer; letting go of them breaks the cycle.
        del self._before_train, self._after_train, self._before_step, self._after_step

    def before_step(self) -> None:
        if self._before_step:
            self._before_step(self.trainer)

    def after_step(self) -> None:
        if self._after_step:
            self._after_step(self.trainer)


class IterationTimer(HookBase):
    """Log the time of each iteration (scalar `time`) and print a summary after training.

    The time of an iteration ends where the `after_step` of this hook is called, so register it first.

    Args:
        warmup_iter: number of iterations at the beginning to leave out.
    """

    def __init__(self, warmup_iter: int = 3) -> None:
        self._warmup_iter = warmup_iter
        self._step_timer = Timer()
        self._start_time = time.perf_counter()
        self._total_timer = Timer()

    def before_train(self) -> None:
        self._start_time = time.perf_counter()
        self._total_timer.reset()
        self._total_timer.pause()

    def after_train(self) -> None:
        logger = logging.getLogger(__name__)
        total = time.perf_counter() - self._start_time
        total_minus_hooks = self._total_timer.seconds()
        num_iter = self.trainer.storage.iter + 1 - self.trainer.start_iter - self._warmup_iter
        if num_iter > 0 and total_minus_hooks > 0:
            logger.info(
                f"Overall training speed: {num_iter} iterations in {_whole_seconds(total_minus_hooks)} "
                f"({total_minus_hooks / num_iter:.4f} s / it)"
            )
        hooks_time = total - total_minus_hooks
        logger.info(f"Total training time: {_whole_seconds(total)} ({_whole_seconds(hooks_time)} on hooks)")

    def before_step(self) -> None:
        self._step_timer.reset()
        self._total_timer.resume()

    def after_step(self) -> None:
        # `iter` counts from 0, and a resumed run warms up again.
        iter_done = self.trainer.storage.iter - self.trainer.start_iter + 1
        if iter_done >= self._warmup_iter:
            self.trainer.storage.put_scalars(time=self._step_timer.seconds())
        else:
            self._start_time = time.perf_counter()
            self._total_timer.reset()
        self._total_timer.pause()


def _whole_seconds(seconds: float) -> datetime.timedelta:
    return datetime.timedelta(seconds=int(seconds))


class PeriodicWriter(HookBase):
    """Call `write()` of each writer every `period` iterations and after the last one, and close them at the end.

    Register it last: what other hooks log in an iteration is then part of what is written.
    """

    def __init__(self, writers: list[EventWriter], period: int = 20) -> None:
        for writer in writers:
            assert isinstance(writer, EventWriter), writer
        self._writers = writers
        self._period = period

    def after_step(self) -> None:
        if (self.trainer.iter + 1) % self._period == 0 or self.trainer.iter == self.trainer.max_iter - 1:
            for writer in self._writers:
                writer.write()

    def after_train(self) -> None:
        for writer in self._writers:
            # Hooks that ran in `after_train`, an evaluation above all, may have logged more.
            writer.write()
            writer.close()


class PeriodicCheckpointer(_PeriodicCheckpointer, HookBase):
    """fvcore's `PeriodicCheckpointer` as a hook: save every `period` iterations and at the end of training."""

    def before_train(self) -> None:
        self.max_iter = self.trainer.max_iter

    def after_step(self) -> None:
        self.step(self.trainer.iter)


class BestCheckpointer(HookBase):
    """Save a checkpoint whenever a logged metric is better than ever before. Register it after the `EvalHook`.

    Args:
        eval_period: the period of the `EvalHook`.
        checkpointer: saves the checkpoint.
        val_metric: name of the metric in the event storage, for example "bbox/AP50".
        mode: "max" or "min", which values are better.
        file_prefix: name of the checkpoint without extension.
    """

    def __init__(
        self,
        eval_period: int,
        checkpointer: Checkpointer,
        val_metric: str,
        mode: str = "max",
        file_prefix: str = "model_best",
    ) -> None:
        assert mode in ["max", "min"], f'Mode "{mode}" to `BestCheckpointer` is unknown. It should be one of: max, min.'
        self._logger = logging.getLogger(__name__)
        self._period = eval_period
        self._val_metric = val_metric
        self._compare = operator.gt if mode == "max" else operator.lt
        self._checkpointer = checkpointer
        self._file_prefix = file_prefix
        self.best_metric: float | None = None
        self.best_iter: int | None = None

    def _update_best(self, val: float, iteration: int) -> bool:
        if math.isnan(val) or math.isinf(val):
            return False
        self.best_metric = val
        self.best_iter = iteration
        return True

    def _best_checking(self) -> None:
        latest = self.trainer.storage.latest().get(self._val_metric)
        if latest is None:
            self._logger.warning(
                f"Given val metric {self._val_metric} does not seem to be computed/stored. "
                "Will not be checkpointing based on it."
            )
            return
        metric, iteration = latest
        if self.best_metric is None:
            if self._update_best(metric, iteration):
                self._checkpointer.save(self._file_prefix, iteration=iteration)
                self._logger.info(f"Saved first model at {self.best_metric:0.5f} @ {self.best_iter} steps")
        elif self._compare(metric, self.best_metric):
            self._checkpointer.save(self._file_prefix, iteration=iteration)
            self._logger.info(
                f"Saved best model as latest eval score for {self._val_metric} is {metric:0.5f}, "
                f"better than last best score {self.best_metric:0.5f} @ iteration {self.best_iter}."
            )
            self._update_best(metric, iteration)
        else:
            self._logger.info(
                f"Not saving as latest eval score for {self._val_metric} is {metric:0.5f}, "
                f"not better than best score {self.best_metric:0.5f} @ iteration {self.best_iter}."
            )

    def after_step(self) -> None:
        next_iter = self.trainer.iter + 1
        if self._period > 0 and next_iter % self._period == 0 and next_iter != self.trainer.max_iter:
            self._best_checking()

    def after_train(self) -> None:
        # Not when training failed: then there was no evaluation either.
        if self.trainer.iter + 1 >= self.trainer.max_iter:
            self._best_checking()


class LRScheduler(HookBase):
    """Step the learning-rate scheduler after every iteration and log the rate as `lr`.

    Args:
        optimizer: the trainer's, if None.
        scheduler: a torch scheduler, or an fvcore `ParamScheduler` of multipliers on the initial rate; the trainer's,
            if None.
    """

    def __init__(self, optimizer: torch.optim.Optimizer | None = None, scheduler=None) -> None:
        self._optimizer = optimizer
        self._scheduler = scheduler

    def before_train(self) -> None:
        self._optimizer = self._optimizer or self.trainer.optimizer
        if isinstance(self.scheduler, ParamScheduler):
            self._scheduler = LRMultiplier(
                self._optimizer, self.scheduler, self.trainer.max_iter, last_iter=self.trainer.iter - 1
            )
        self._best_param_group_id = LRScheduler.get_best_param_group_id(self._optimizer)

    @staticmethod
    def get_best_param_group_id(optimizer: torch.optim.Optimizer) -> int:
        """Index of the group whose rate represents all: the largest, or one of the most common initial rate."""
        groups = optimizer.param_groups
        largest = max(len(group["params"]) for group in groups)
        if largest > 1:
            return next(i for i, group in enumerate(groups) if len(group["params"]) == largest)
        common_lr = Counter(group["lr"] for group in groups).most_common(1)[0][0]
        return next(i for i, group in enumerate(groups) if group["lr"] == common_lr)

    def after_step(self) -> None:
        lr = self._optimizer.param_groups[self._best_param_group_id]["lr"]
        self.trainer.storage.put_scalar("lr", lr, smoothing_hint=False)
        self.scheduler.step()

    @property
    def scheduler(self):
        return self._scheduler or self.trainer.scheduler

    def state_dict(self) -> dict:
        if isinstance(self.scheduler, torch.optim.lr_scheduler.LRScheduler):
            return self.scheduler.state_dict()
        return {}

    def load_state_dict(self, state_dict: dict) -> None:
        if isinstance(self.scheduler, torch.optim.lr_scheduler.LRScheduler):
            logging.getLogger(__name__).info("Loading scheduler from state_dict ...")
            self.scheduler.load_state_dict(state_dict)


class EvalHook(HookBase):
    """Run an evaluation function periodically, and after training. It runs in every process and synchronizes them.

    Args:
        eval_period: run every this many iterations, 0 to run after training only.
        eval_function: takes nothing and returns a (nested) dict of numbers, which are logged as `a/b/c`, or None.
        eval_after_train: run after the last iteration too.
    """

    def __init__(self, eval_period: int, eval_function: Callable[[], dict | None], eval_after_train: bool = True):
        self._period = eval_period
        self._func = eval_function
        self._eval_after_train = eval_after_train

    def _do_eval(self) -> None:
        results = self._func()
        if results:
            assert isinstance(results, dict), f"Eval function must return a dict. Got {results} instead."
            flattened = flatten_results_dict(results)
            for name, value in flattened.items():
                try:
                    float(value)
                except Exception as e:
                    raise ValueError(
                        f"[EvalHook] eval_function should return a nested dict of float. Got '{name}: {value}' instead."
                    ) from e
            self.trainer.storage.put_scalars(**flattened, smoothing_hint=False)
        # One process may take longer; without waiting the others time out in the next step's communication.
        comm.synchronize()

    def after_step(self) -> None:
        next_iter = self.trainer.iter + 1
        # The last iteration is left to `after_train`.
        if self._period > 0 and next_iter % self._period == 0 and next_iter != self.trainer.max_iter:
            self._do_eval()

    def after_train(self) -> None:
        # Not when training failed.
        if self._eval_after_train and self.trainer.iter + 1 >= self.trainer.max_iter:
            self._do_eval()
        # The function is likely a closure that holds the trainer; letting go of it breaks the cycle.
        del self._func
