"""What a training step of several configs takes, measured in turns."""

import json
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from detectron2.config import CfgNode

from sparsercnn.data import register_config_datasets
from sparsercnn.engine import Trainer
from sparsercnn.errors import InputError
from sparsercnn.files import write_json

from .neck_comparison.laboratory import start_pool

WARM_UP = 2
ROUNDS = 20


def measured_once(configs: Mapping[str, CfgNode], file: Path) -> dict[str, float]:
    """`step_times` in a process of one thread, read from `file` if they were measured before.

    Raises:
        InputError: `file` has the times of other configs or is something else, or its folder cannot be made.
    """
    settings = {name: cfg.dump() for name, cfg in configs.items()}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {file.parent}: {error.strerror}; choose another --output") from error
    if not file.exists():
        with start_pool(1) as pool:
            seconds = pool.submit(step_times, settings).result()
        write_json(file, {"settings": settings, "seconds": seconds})
    try:
        stored = json.loads(file.read_text())
    except (OSError, ValueError):
        stored = None
    if not isinstance(stored, dict) or stored.get("settings") != settings:
        raise InputError(f"{file.parent} holds a comparison with other settings: choose another --output")
    return stored["seconds"]


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
    cfg.MODEL.DEVICE = "cpu"
    cfg.SOLVER.MAX_ITER = 10 * (WARM_UP + ROUNDS)
    cfg.SOLVER.WARMUP_ITERS = WARM_UP + ROUNDS
    cfg.SOLVER.CHECKPOINT_PERIOD, cfg.TEST.EVAL_PERIOD = cfg.SOLVER.MAX_ITER, 0
    cfg.DATALOADER.NUM_WORKERS = 0  # reading pictures is part of a step
    register_config_datasets(cfg)
    trainer = Trainer(cfg)
    with trainer.storage:
        trainer.before_train()
    return trainer
