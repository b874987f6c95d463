"""What is done with evaluation results: print them, compare them with expected ones, flatten them."""

import logging
import pprint
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from detectron2.config import CfgNode


def print_csv_format(results: Mapping[str, Any]) -> None:
    """Log the main metrics of each task in a form that can be pasted into a spreadsheet.

    Args:
        results: {task: {metric: value}}. Metrics with "-" in their name (those of single classes) are left out.
    """
    assert isinstance(results, Mapping) or not len(results), results
    logger = logging.getLogger(__name__)
    for task, res in results.items():
        if not isinstance(res, Mapping):
            logger.info(f"copypaste: {task}={res}")
            continue
        main = {metric: value for metric, value in res.items() if "-" not in metric}
        logger.info(f"copypaste: Task: {task}")
        logger.info("copypaste: " + ",".join(main))
        logger.info("copypaste: " + ",".join(f"{value:.4f}" for value in main.values()))


def verify_results(cfg: CfgNode, results: Mapping[str, Mapping[str, float]]) -> bool:
    """Compare results with cfg.TEST.EXPECTED_RESULTS, a list of [task, metric, value, tolerance].

    Returns:
        True. If a result is missing, not finite or too far off, the process exits with status 1 instead.
    """
    expected_results = cfg.TEST.EXPECTED_RESULTS
    if not len(expected_results):
        return True

    def holds(task: str, metric: str, expected: float, tolerance: float) -> bool:
        actual = results[task].get(metric)
        return actual is not None and bool(np.isfinite(actual)) and abs(actual - expected) <= tolerance

    logger = logging.getLogger(__name__)
    if not all(holds(*expectation) for expectation in expected_results):
        logger.error("Result verification failed!")
        logger.error("Expected Results: " + str(expected_results))
        logger.error("Actual Results: " + pprint.pformat(results))
        sys.exit(1)
    logger.info("Results verification passed.")
    return True


def flatten_results_dict(results: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts as one: {"bbox": {"AP": 40.0}} becomes {"bbox/AP": 40.0}."""
    flat: dict[str, Any] = {}
    for key, value in results.items():
        if isinstance(value, Mapping):
            flat.update({f"{key}/{inner}": v for inner, v in flatten_results_dict(value).items()})
        else:
            flat[key] = value
    return flat
