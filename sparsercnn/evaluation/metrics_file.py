"""The file of an evaluation's results."""

import math
import os

from detectron2.config import CfgNode

from ..files import write_json


def write_metrics(cfg: CfgNode, results: dict) -> None:
    """Write OUTPUT_DIR/inference/NAME/metrics.json for each data set: {task: {metric: value}}.

    Args:
        cfg: the config, of which `OUTPUT_DIR` and `DATASETS.TEST` are read.
        results: {task: {metric: value}}; with several data sets, that by name. A metric without value (there are no
            such objects) becomes null.
    """
    by_dataset = {cfg.DATASETS.TEST[0]: results} if len(cfg.DATASETS.TEST) == 1 else results
    for name, tasks in by_dataset.items():
        plain = {
            task: {metric: None if math.isnan(value) else float(value) for metric, value in metrics.items()}
            for task, metrics in tasks.items()
        }
        path = os.path.join(cfg.OUTPUT_DIR, "inference", name, "metrics.json")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write_json(path, plain)
