"""Trainings of a comparison with `Trainer`, each in a folder of its own: done, resumed, or found finished."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils.env import seed_all_rng
from tqdm import tqdm

from sparsercnn.engine import Trainer
from sparsercnn.errors import InputError
from sparsercnn.files import write_whole


def runs_of(
    configs: Mapping[str, CfgNode], seeds: int, iterations: int | None, output: Path
) -> Iterator[tuple[str, CfgNode]]:
    """The training runs, every config with the first seed, then with the next: name and config of each.

    Args:
        configs: by name.
        seeds: how many.
        iterations: of each run, None for those of its config.
        output: folder of all runs.
    """
    for seed in range(1, seeds + 1):
        for name, cfg in configs.items():
            cfg = cfg.clone()
            cfg.SEED = seed
            cfg.OUTPUT_DIR = str(output / "runs" / name / f"seed{seed}")
            if iterations:
                _set_budget(cfg, iterations)
            # A run that is killed loses a quarter of its budget at most.
            cfg.SOLVER.CHECKPOINT_PERIOD = min(cfg.SOLVER.CHECKPOINT_PERIOD, -(-cfg.SOLVER.MAX_ITER // 4))
            cfg.TEST.EVAL_PERIOD = 0
            cfg.freeze()
            yield name, cfg


def _set_budget(cfg: CfgNode, iterations: int) -> None:
    """Train for so many iterations, with warm-up and steps at the same fractions of the training."""
    scale = iterations / cfg.SOLVER.MAX_ITER
    cfg.SOLVER.MAX_ITER = iterations
    cfg.SOLVER.WARMUP_ITERS = max(1, round(cfg.SOLVER.WARMUP_ITERS * scale))
    cfg.SOLVER.STEPS = tuple(round(step * scale) for step in cfg.SOLVER.STEPS)


class Progress(HookBase):
    """Moves `bar` on by one with each iteration."""

    def __init__(self, bar: tqdm):
        self.bar = bar

    def after_step(self) -> None:
        self.bar.update()


def train(cfg: CfgNode, bar: tqdm) -> None:
    """Train and evaluate one run, or resume it; nothing is done for a finished one.

    Raises:
        InputError: the folder holds a run with other settings.
    """
    folder = Path(cfg.OUTPUT_DIR)
    config_file, finished = folder / "config.yaml", folder / "finished"
    if config_file.exists() and config_file.read_text() != cfg.dump():
        raise InputError(f"{folder} holds a run with other settings: choose another --output, or remove the folder")
    if finished.exists():
        bar.update(cfg.SOLVER.MAX_ITER)
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(config_file, lambda file: file.write(cfg.dump().encode()))
    seed_all_rng(cfg.SEED)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    bar.update(trainer.start_iter)
    trainer.register_hooks([Progress(bar)])
    trainer.train()
    # Runs of a comparison are made for their numbers; the checkpoints of all of them would fill a disk.
    for checkpoint in folder.rglob("*.pth"):
        checkpoint.unlink()
    finished.touch()
