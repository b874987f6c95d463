"""Hooks that profile chosen iterations and log GPU memory; `detectron2.engine.hooks` exports them."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable

import torch

from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from .train_loop import HookBase


class TorchProfiler(HookBase):
    """Profile the iterations that a predicate selects with `torch.profiler.profile`.

    Args:
        enable_predicate: takes the trainer and returns whether to profile the coming iteration.
        output_dir: where traces go.
        activities: as in `torch.profiler.profile`.
        save_tensorboard: save traces for TensorBoard under `output_dir/log/`, instead of `profiler-trace-iterN.json`.
    """

    def __init__(
        self,
        enable_predicate: Callable[..., bool],
        output_dir: str,
        *,
        activities: list | None = None,
        save_tensorboard: bool = True,
    ) -> None:
        self._enable_predicate = enable_predicate
        self._activities = activities
        self._output_dir = output_dir
        self._save_tensorboard = save_tensorboard

    def before_step(self) -> None:
        if not self._enable_predicate(self.trainer):
            self._profiler = None
            return
        on_trace_ready = None
        if self._save_tensorboard:
            folder = os.path.join(self._output_dir, "log", f"profiler-tensorboard-iter{self.trainer.iter}")
            on_trace_ready = torch.profiler.tensorboard_trace_handler(folder, f"worker{comm.get_rank()}")
        self._profiler = torch.profiler.profile(
            activities=self._activities,
            on_trace_ready=on_trace_ready,
            record_shapes=True,
            profile_memory=True,
            with_stack=True,
            with_flops=True,
        )
        self._profiler.__enter__()

    def after_step(self) -> None:
        if self._profiler is None:
            return
        self._profiler.__exit__(None, None, None)
        if not self._save_tensorboard:
            _export_trace(self._profiler, self._output_dir, self.trainer.iter)


def _export_trace(profiler, output_dir: str, iteration: int) -> None:
    PathManager.mkdirs(output_dir)
    # The profiler writes local files only; the folder may be anything that PathManager handles.
    with tempfile.TemporaryDirectory(prefix="detectron2_profiler") as folder:
        local_file = os.path.join(folder, "trace.json")
        profiler.export_chrome_trace(local_file)
        with (
            open(local_file) as f,
            PathManager.open(os.path.join(output_dir, f"profiler-trace-iter{iteration}.json"), "w") as out,
        ):
            out.write(f.read())


class TorchMemoryStats(HookBase):
    """Log the memory of PyTorch's CUDA allocator periodically.

    Args:
        period: log every this many iterations.
        max_runs: stop after this many times, with a full `torch.cuda.memory_summary()`.
    """

    def __init__(self, period: int = 20, max_runs: int = 10) -> None:
        self._logger = logging.getLogger(__name__)
        self._period = period
        self._max_runs = max_runs
        self._runs = 0

    def after_step(self) -> None:
        if self._runs > self._max_runs or not torch.cuda.is_available():
            return
        if (self.trainer.iter + 1) % self._period and self.trainer.iter != self.trainer.max_iter - 1:
            return
        mega = 1024.0 * 1024.0
        self._logger.info(
            f"iter: {self.trainer.iter} "
            f"max_reserved_mem: {torch.cuda.max_memory_reserved() / mega:.0f}MB "
            f"max_allocated_mem: {torch.cuda.max_memory_allocated() / mega:.0f}MB "
            f"reserved_mem: {torch.cuda.memory_reserved() / mega:.0f}MB "
            f"allocated_mem: {torch.cuda.memory_allocated() / mega:.0f}MB"
        )
        self._runs += 1
        if self._runs == self._max_runs:
            self._logger.info("\n" + torch.cuda.memory_summary())
        torch.cuda.reset_peak_memory_stats()
