"""What a training step of several configs takes, measured in turns."""

import statistics
import tempfile
import time
from collections.abc import Mapping

from detectron2.config import CfgNode

from sparsercnn.data import register_config_datasets
from sparsercnn.engine import Trainer

WARM_UP = 2
ROUNDS = 20


def step_times(configs: Mapping[str, str]) -> dict[str, float]:
    """CPU seconds of a training step in this process, averages of weights included; medians.

    Steps take turns, so that whatever else slows the machine down slows all of them.

    Args:
        configs: of the trainings, by name, as `CfgNode.dump` writes them.
    """
    with tempfile.TemporaryDirectory() as folder:
        trainers = {name: _trainer(CfgNode.load_cfg(text), folder) for name, text in configs.items()}
        times: dict[str, list[float]] = {name: [] for name in configs}
        for iteration in range(WARM_UP + ROUNDS):
            for name, trainer in trainers.items():
                trainer.iter = iteration
                with trainer.storage:
                    start = time.process_time()
                    trainer.before_step()
                    trainer.run_step()
                    trainer.after_step()
                    times[name].append(time.process_time() - start)
    return {name: statistics.median(seconds[WARM_UP:]) for name, seconds in times.items()}


def _trainer(cfg: CfgNode, folder: str) -> Trainer:
    cfg.OUTPUT_DIR = folder
    cfg.SOLVER.MAX_ITER = 10 * (WARM_UP + ROUNDS)
    cfg.SOLVER.WARMUP_ITERS = WARM_UP + ROUNDS
    cfg.SOLVER.CHECKPOINT_PERIOD, cfg.TEST.EVAL_PERIOD = cfg.SOLVER.MAX_ITER, 0
    register_config_datasets(cfg)
    trainer = Trainer(cfg)
    with trainer.storage:
        trainer.before_train()
    return trainer
