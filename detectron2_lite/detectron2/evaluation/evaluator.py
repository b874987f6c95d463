"""Running a model on a data set and handing what it says to evaluators."""

import datetime
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from detectron2.utils.comm import get_world_size, is_main_process
from detectron2.utils.logger import log_every_n_seconds


class DatasetEvaluator:
    """Base of evaluators: collects the outputs for a data set piece by piece, then judges all of them."""

    def reset(self) -> None:
        """Prepare for a new round; called before it."""

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Take in the model's outputs for one batch.

        Args:
            inputs: what the model was given.
            outputs: what it returned, one element per input.
        """

    def evaluate(self) -> dict[str, Any] | None:
        """Judge everything since `reset`; called after all batches.

        Returns:
            {task: {metric: value}}; None or {} in processes other than the main one.
        """


class DatasetEvaluators(DatasetEvaluator):
    """Several evaluators as one, their results in one dict.

    Args:
        evaluators: must not report the same task.
    """

    def __init__(self, evaluators: Sequence[DatasetEvaluator]):
        super().__init__()
        self._evaluators = evaluators

    def reset(self) -> None:
        for evaluator in self._evaluators:
            evaluator.reset()

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        for evaluator in self._evaluators:
            evaluator.process(inputs, outputs)

    def evaluate(self) -> dict[str, Any]:
        results: dict[str, Any] = OrderedDict()
        for evaluator in self._evaluators:
            result = evaluator.evaluate()
            if not is_main_process() or result is None:
                continue
            for key, value in result.items():
                assert key not in results, f"Different evaluators produce results with the same key {key}"
                results[key] = value
        return results


class _Stopwatch:
    """Seconds spent on loading, computing and evaluating since the end of the warm-up."""

    def __init__(self, total: int):
        self.total = total
        self.warmup = min(5, total - 1)
        self.restart()

    def restart(self) -> None:
        self.start = time.perf_counter()
        self.data = self.compute = self.eval = 0.0

    def elapsed(self) -> float:
        return time.perf_counter() - self.start

    def log_progress(self, idx: int) -> None:
        """Log speed and remaining time every few seconds, once the numbers mean something."""
        iterations = idx + 1 - self.warmup * int(idx >= self.warmup)
        if idx < self.warmup * 2 and self.compute / iterations <= 5:
            return
        per_iter = self.elapsed() / iterations
        eta = datetime.timedelta(seconds=int(per_iter * (self.total - idx - 1)))
        log_every_n_seconds(
            logging.INFO,
            f"Inference done {idx + 1}/{self.total}. "
            f"Dataloading: {self.data / iterations:.4f} s/iter. "
            f"Inference: {self.compute / iterations:.4f} s/iter. "
            f"Eval: {self.eval / iterations:.4f} s/iter. "
            f"Total: {per_iter:.4f} s/iter. "
            f"ETA={eta}",
            n=5,
        )

    def log_total(self, logger: logging.Logger) -> None:
        def speed(seconds: float) -> str:
            return f"({seconds / (self.total - self.warmup):.6f} s / iter per device, on {get_world_size()} devices)"

        elapsed = self.elapsed()
        logger.info(f"Total inference time: {datetime.timedelta(seconds=elapsed)} {speed(elapsed)}")
        compute = datetime.timedelta(seconds=int(self.compute))
        logger.info(f"Total inference pure compute time: {compute} {speed(self.compute)}")


def inference_on_dataset(
    model: Callable[[list[dict]], Any],
    data_loader: Any,
    evaluator: DatasetEvaluator | list[DatasetEvaluator] | None,
    callbacks: dict[str, Callable[[], None]] | None = None,
) -> dict[str, Any]:
    """Run the model on every batch without gradients, in eval mode if it is a module, and evaluate the outputs.

    The log tells the speed, measured after a warm-up of up to five batches.

    Args:
        model: maps a batch to a list of outputs. A module gets its train/eval mode back afterwards.
        data_loader: iterable of batches, with a length.
        evaluator: one evaluator or several; None only runs the model.
        callbacks: functions called at "on_start", "before_inference", "after_inference" (each batch), "on_end".

    Returns:
        what `evaluator.evaluate()` returns; {} in place of None.
    """
    logger = logging.getLogger(__name__)
    total = len(data_loader)
    logger.info(f"Start inference on {total} batches")
    if evaluator is None or isinstance(evaluator, list):
        evaluator = DatasetEvaluators(evaluator or [])
    evaluator.reset()

    def call(event: str) -> None:
        (callbacks or {}).get(event, lambda: None)()

    watch = _Stopwatch(total)
    with ExitStack() as stack:
        if isinstance(model, nn.Module):
            stack.enter_context(inference_context(model))
        stack.enter_context(torch.no_grad())
        started = time.perf_counter()
        call("on_start")
        for idx, inputs in enumerate(data_loader):
            watch.data += time.perf_counter() - started
            if idx == watch.warmup:
                watch.restart()

            started = time.perf_counter()
            call("before_inference")
            outputs = model(inputs)
            call("after_inference")
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            watch.compute += time.perf_counter() - started

            started = time.perf_counter()
            evaluator.process(inputs, outputs)
            watch.eval += time.perf_counter() - started
            watch.log_progress(idx)
            started = time.perf_counter()
        call("on_end")
    watch.log_total(logger)

    results = evaluator.evaluate()
    return {} if results is None else results


@contextmanager
def inference_context(model: nn.Module) -> Iterator[None]:
    """Eval mode within the context, the previous mode after it."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
