"""What a training step of each neck takes: CPU time, measured in turns, and multiply-adds, counted."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from sparsercnn.data import register_config_datasets
from sparsercnn.engine import build_model, build_optimizer
from sparsercnn.evaluation.costs import count_gmacs, count_parameters

from .pictures import Pictures
from .training import Detector

# Steps of each neck that are timed, after one that is not.
ROUNDS = 5


@dataclass(frozen=True)
class Cost:
    """What a detector costs.

    Attributes:
        parameters: millions, of the neck.
        neck_gmacs, head_gmacs: billions of multiply-adds for one picture.
        trained_gmacs: the same of all parts that are trained.
        step_seconds: CPU seconds of a training step in one thread, the median.
        test_seconds: of detecting in one picture.
    """

    parameters: float
    neck_gmacs: float
    head_gmacs: float
    trained_gmacs: float
    step_seconds: float
    test_seconds: float


def measure(configs: Mapping[str, CfgNode], features: Path | None) -> dict[str, Cost]:
    """The costs of detectors, by name.

    Steps take turns, so that whatever else slows the machine down slows all of them.

    Args:
        configs: the detectors, which have the data sets in common.
        features: see `Training`.
    """
    first = next(iter(configs.values()))
    register_config_datasets(first)
    pictures = Pictures.of(first, first.DATASETS.TRAIN[0])
    batch = [(i % len(pictures), False) for i in range(first.SOLVER.IMS_PER_BATCH)]
    detectors = {name: Detector(cfg, features) for name, cfg in configs.items()}
    optimizers = {name: build_optimizer(cfg, detectors[name].model) for name, cfg in configs.items()}
    steps: dict[str, list[float]] = {name: [] for name in configs}
    tests: dict[str, list[float]] = {name: [] for name in configs}
    for _ in range(ROUNDS + 1):
        for name, detector in detectors.items():
            start = time.process_time()
            optimizers[name].zero_grad()
            detector.losses(pictures, batch).backward()
            optimizers[name].step()
            middle = time.process_time()
            detector.detect_in(pictures, batch)
            steps[name].append(middle - start)
            tests[name].append((time.process_time() - middle) / len(batch))
    medians = ({name: statistics.median(times[1:]) for name, times in parts.items()} for parts in (steps, tests))
    of_steps, of_tests = medians
    return {name: _cost(cfg, pictures, of_steps[name], of_tests[name]) for name, cfg in configs.items()}


def _cost(cfg: CfgNode, pictures: Pictures, step_seconds: float, test_seconds: float) -> Cost:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.TIMM.PRETRAINED = False
    model: Any = build_model(cfg).eval()
    gmacs = count_gmacs(model, pictures.sample(0)["image"].float())
    learns = any(parameter.requires_grad for parameter in model.backbone.bottom_up.parameters())
    return Cost(
        parameters=count_parameters(model)["neck"],
        neck_gmacs=gmacs["neck"],
        head_gmacs=gmacs["head"],
        trained_gmacs=gmacs["total"] - (0 if learns else gmacs["bottom-up"]),
        step_seconds=step_seconds,
        test_seconds=test_seconds,
    )


def budgets(costs: Mapping[str, Cost], reference: str, iterations: int) -> dict[str, dict[str, int]]:
    """Iterations of each neck that make comparisons of three kinds equal.

    Args:
        costs: of each neck.
        reference: the neck that has `iterations` in all three.
        iterations: see `reference`.

    Returns:
        {"iterations" | "time" | "multiply-adds": {neck: iterations, at least 1}}.
    """
    base = costs[reference]
    time_ratio = {name: base.step_seconds / cost.step_seconds for name, cost in costs.items()}
    mac_ratio = {name: base.trained_gmacs / cost.trained_gmacs for name, cost in costs.items()}
    return {
        "iterations": dict.fromkeys(costs, iterations),
        "time": {name: max(1, round(iterations * ratio)) for name, ratio in time_ratio.items()},
        "multiply-adds": {name: max(1, round(iterations * ratio)) for name, ratio in mac_ratio.items()},
    }
