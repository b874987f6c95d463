"""The training loop: what calls hooks around each step, and the plain and mixed-precision steps."""

from __future__ import annotations

import concurrent.futures
import logging
import time
import weakref
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from detectron2.utils import comm
from detectron2.utils.events import EventStorage, get_event_storage

__all__ = ["HookBase", "TrainerBase", "SimpleTrainer", "AMPTrainer"]


class HookBase:
    """Something to do at fixed points of the training loop; override any of the methods.

    Attributes:
        trainer: a weak reference to the trainer, set when the hook is registered.
    """

    trainer: TrainerBase = None

    def before_train(self) -> None:
        """Called once before the first iteration."""

    def after_train(self) -> None:
        """Called once after the last iteration, also when training ends by an exception."""

    def before_step(self) -> None:
        """Called before each iteration."""

    def after_backward(self) -> None:
        """Called after the backward pass of each iteration."""

    def after_step(self) -> None:
        """Called after each iteration."""

    def state_dict(self) -> dict:
        """State to put into checkpoints; a hook that returns some must define `load_state_dict`."""
        return {}


class TrainerBase:
    """An iterative loop with hooks, which knows nothing of models or data.

    Attributes:
        iter: the current iteration.
        start_iter: the iteration to start with; by convention the minimum possible is 0.
        max_iter: the iteration to end training before.
        storage: the `EventStorage` open during training.
    """

    def __init__(self) -> None:
        self._hooks: list[HookBase] = []
        self.iter: int = 0
        self.start_iter: int = 0
        self.max_iter: int
        self.storage: EventStorage

    def register_hooks(self, hooks: list[HookBase | None]) -> None:
        """Append hooks, which run in the order of registration; None entries are dropped."""
        hooks = [hook for hook in hooks if hook is not None]
        for hook in hooks:
            assert isinstance(hook, HookBase)
            # A strong reference would be a cycle that keeps the model's memory until the garbage collector runs.
            hook.trainer = weakref.proxy(self)
        self._hooks.extend(hooks)

    def train(self, start_iter: int, max_iter: int) -> None:
        """Run iterations `start_iter` to `max_iter - 1` with the hooks around them."""
        logger = logging.getLogger(__name__)
        logger.info(f"Starting training from iteration {start_iter}")
        self.iter = self.start_iter = start_iter
        self.max_iter = max_iter
        with EventStorage(start_iter) as self.storage:
            try:
                self.before_train()
                for self.iter in range(start_iter, max_iter):
                    self.before_step()
                    self.run_step()
                    self.after_step()
                # iter == max_iter tells `after_train` that training came to its end.
                self.iter += 1
            except Exception:
                logger.exception("Exception during training:")
                raise
            finally:
                self.after_train()

    def before_train(self) -> None:
        for hook in self._hooks:
            hook.before_train()

    def after_train(self) -> None:
        self.storage.iter = self.iter
        for hook in self._hooks:
            hook.after_train()

    def before_step(self) -> None:
        self.storage.iter = self.iter
        for hook in self._hooks:
            hook.before_step()

    def after_backward(self) -> None:
        for hook in self._hooks:
            hook.after_backward()

    def after_step(self) -> None:
        for hook in self._hooks:
            hook.after_step()

    def run_step(self) -> None:
        raise NotImplementedError

    def state_dict(self) -> dict:
        """`iteration`, and under `hooks` the state of each hook by its class name (the first hook of a class wins)."""
        state = {"iteration": self.iter}
        hooks_state = {}
        for hook in self._hooks:
            if hook_state := hook.state_dict():
                hooks_state.setdefault(type(hook).__qualname__, hook_state)
        if hooks_state:
            state["hooks"] = hooks_state
        return state

    def load_state_dict(self, state_dict: dict) -> None:
        self.iter = state_dict["iteration"]
        for name, hook_state in state_dict.get("hooks", {}).items():
            hook = next((hook for hook in self._hooks if type(hook).__qualname__ == name), None)
            if hook is None:
                logging.getLogger(__name__).warning(f"Cannot find the hook '{name}', its state_dict is ignored.")
            else:
                hook.load_state_dict(hook_state)


class SimpleTrainer(TrainerBase):
    """One loss, one optimizer, one data loader: fetch, forward, backward, step, every iteration.

    Args:
        model: takes what the data loader yields and returns a loss or a dict of losses. Set to training mode.
        data_loader: an endless iterable.
        optimizer: steps once per iteration.
        gather_metric_period: gather losses from all processes and log them every this many iterations.
        zero_grad_before_forward: zero the gradients before the forward pass instead of before the backward pass.
        async_write_metrics: write metrics in a thread, so that their transfer from a GPU does not stop the loop.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable,
        optimizer: torch.optim.Optimizer,
        gather_metric_period: int = 1,
        zero_grad_before_forward: bool = False,
        async_write_metrics: bool = False,
    ) -> None:
        super().__init__()
        model.train()
        self.model = model
        self.data_loader = data_loader
        self._data_loader_iter_obj = None
        self.optimizer = optimizer
        self.gather_metric_period = gather_metric_period
        self.zero_grad_before_forward = zero_grad_before_forward
        self.async_write_metrics = async_write_metrics
        self.concurrent_executor = concurrent.futures.ThreadPoolExecutor(max_workers=1)

    def run_step(self) -> None:
        assert self.model.training, "[SimpleTrainer] model was changed to eval mode!"
        data, data_time = self._fetch()
        if self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        loss_dict, losses = self._forward(data)
        if not self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        losses.backward()
        self.after_backward()
        self._submit_metrics(loss_dict, data_time)
        self.optimizer.step()

    def _fetch(self) -> tuple[object, float]:
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        return data, time.perf_counter() - start

    def _forward(self, data) -> tuple[dict[str, Tensor], Tensor]:
        loss_dict = self.model(data)
        if isinstance(loss_dict, Tensor):
            return {"total_loss": loss_dict}, loss_dict
        return loss_dict, sum(loss_dict.values())

    def _submit_metrics(self, loss_dict: dict[str, Tensor], data_time: float) -> None:
        if self.async_write_metrics:
            self.concurrent_executor.submit(self._write_metrics, loss_dict, data_time, iter=self.iter)
        else:
            self._write_metrics(loss_dict, data_time)

    @property
    def _data_loader_iter(self):
        # Made at the first step and not earlier: starting the workers of a loader that is never used is expensive.
        if self._data_loader_iter_obj is None:
            self._data_loader_iter_obj = iter(self.data_loader)
        return self._data_loader_iter_obj

    def reset_data_loader(self, data_loader_builder: Callable[[], Iterable]) -> None:
        """Replace the data loader by what `data_loader_builder()` returns, after letting go of the current one."""
        del self.data_loader
        self._data_loader_iter_obj = None
        self.data_loader = data_loader_builder()

    def _write_metrics(
        self, loss_dict: Mapping[str, Tensor], data_time: float, prefix: str = "", iter: int | None = None
    ) -> None:
        iter = self.iter if iter is None else iter
        if (iter + 1) % self.gather_metric_period:
            return
        try:
            SimpleTrainer.write_metrics(loss_dict, data_time, iter, prefix)
        except Exception:
            # In a thread nobody would see the exception.
            logging.getLogger(__name__).exception("Exception in writing metrics: ")
            raise

    @staticmethod
    def write_metrics(loss_dict: Mapping[str, Tensor], data_time: float, cur_iter: int, prefix: str = "") -> None:
        """Average the losses over all processes and put them and their sum into the event storage.

        Raises:
            FloatingPointError: the sum of the losses is infinite or not a number.
        """
        metrics = {k: v.detach().cpu().item() for k, v in loss_dict.items()}
        metrics["data_time"] = data_time
        storage = get_event_storage()
        storage.put_scalar("rank_data_time", data_time, cur_iter=cur_iter)
        gathered = comm.gather(metrics)
        if not comm.is_main_process():
            return

        # The slowest process determines how long all of them wait.
        storage.put_scalar("data_time", np.max([m.pop("data_time") for m in gathered]), cur_iter=cur_iter)
        metrics = {k: np.mean([m[k] for m in gathered]) for k in gathered[0]}
        total = sum(metrics.values())
        if not np.isfinite(total):
            raise FloatingPointError(f"Loss became infinite or NaN at iteration={cur_iter}!\nloss_dict = {metrics}")
        storage.put_scalar(f"{prefix}total_loss", total, cur_iter=cur_iter)
        if len(metrics) > 1:
            storage.put_scalars(cur_iter=cur_iter, **metrics)

    def state_dict(self) -> dict:
        return {**super().state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        self.optimizer.load_state_dict(state_dict["optimizer"])

    def after_train(self) -> None:
        super().after_train()
        self.concurrent_executor.shutdown(wait=True)


class AMPTrainer(SimpleTrainer):
    """`SimpleTrainer` with CUDA automatic mixed precision: forward under autocast, backward of the scaled loss.

    Args:
        grad_scaler: a `torch.cuda.amp.GradScaler`, made with its defaults if None.
        precision: dtype of autocast.
        log_grad_scaler: log the scale as `[metric]grad_scaler`.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable,
        optimizer: torch.optim.Optimizer,
        gather_metric_period: int = 1,
        zero_grad_before_forward: bool = False,
        grad_scaler: torch.amp.GradScaler | None = None,
        precision: torch.dtype = torch.float16,
        log_grad_scaler: bool = False,
        async_write_metrics: bool = False,
    ) -> None:
        unsupported = "AMPTrainer does not support single-process multi-device training!"
        if isinstance(model, DistributedDataParallel):
            assert not (model.device_ids and len(model.device_ids) > 1), unsupported
        assert not isinstance(model, DataParallel), unsupported
        super().__init__(
            model, data_loader, optimizer, gather_metric_period, zero_grad_before_forward, async_write_metrics
        )
        self.grad_scaler = torch.amp.GradScaler("cuda") if grad_scaler is None else grad_scaler
        self.precision = precision
        self.log_grad_scaler = log_grad_scaler

    def run_step(self) -> None:
        assert self.model.training, "[AMPTrainer] model was changed to eval mode!"
        assert torch.cuda.is_available(), "[AMPTrainer] CUDA is required for AMP training!"
        data, data_time = self._fetch()
        if self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        with torch.autocast("cuda", dtype=self.precision):
            loss_dict, losses = self._forward(data)
        if not self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        self.grad_scaler.scale(losses).backward()
        if self.log_grad_scaler:
            get_event_storage().put_scalar("[metric]grad_scaler", self.grad_scaler.get_scale())
        self.after_backward()
        self._submit_metrics(loss_dict, data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def state_dict(self) -> dict:
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
