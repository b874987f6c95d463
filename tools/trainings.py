"""Trainings of a comparison, side by side in processes of one thread each: done, resumed, or found finished."""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from scipy import stats
from tqdm import tqdm

from sparsercnn.errors import InputError
from sparsercnn.files import write_whole

from .comparison import at_least

ROOT = Path(__file__).resolve().parent.parent
# Of a training: one that is killed loses a quarter.
CHECKPOINTS = 4


def add_arguments(parser: argparse.ArgumentParser, seeds: int, output: Path) -> None:
    """Add what all comparisons are told: --seeds, --jobs and --output, with these defaults."""
    parser.add_argument("--seeds", type=at_least(1), default=seeds, help="trainings of each row (default: %(default)s)")
    parser.add_argument(
        "--jobs", type=at_least(1), default=os.cpu_count() or 1, help="at a time (default: %(default)s)"
    )
    parser.add_argument("--output", type=Path, default=output, help="folder for all results (default: %(default)s)")


def training(cfg: CfgNode, seed: int, folder: Path, iterations: int | None = None, with_curve: bool = False) -> CfgNode:
    """The config of one training.

    Args:
        cfg: of the detector.
        seed: of the training.
        folder: for its results.
        iterations: how many; warm-up and steps are at the same fractions of them as in `cfg`. None for those of `cfg`.
        with_curve: whether it is evaluated at each checkpoint, and not in the end alone.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"  # as many at a time as it has cores
    cfg.SEED = seed
    cfg.OUTPUT_DIR = str(folder)
    scale = 1 if iterations is None else iterations / cfg.SOLVER.MAX_ITER
    cfg.SOLVER.MAX_ITER = max(2, round(cfg.SOLVER.MAX_ITER * scale))
    cfg.SOLVER.WARMUP_ITERS = max(1, round(cfg.SOLVER.WARMUP_ITERS * scale))
    cfg.SOLVER.STEPS = tuple(sorted({max(1, round(step * scale)) for step in cfg.SOLVER.STEPS}))
    cfg.SOLVER.CHECKPOINT_PERIOD = -(-cfg.SOLVER.MAX_ITER // CHECKPOINTS)
    cfg.TEST.EVAL_PERIOD = cfg.SOLVER.CHECKPOINT_PERIOD if with_curve else 0
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.freeze()
    return cfg


def check_test_set(cfg: CfgNode) -> None:
    """Check that `read_metrics` will find an AP.

    Raises:
        InputError: there is not one test set, or COCO's evaluation is not for it.
    """
    if len(cfg.DATASETS.TEST) != 1:
        raise InputError(f"DATASETS.TEST is {cfg.DATASETS.TEST}; name the one data set that is compared on")
    name = cfg.DATASETS.TEST[0]
    if (kind := MetadataCatalog.get(name).get("evaluator_type")) != "coco":
        raise InputError(f"data set {name} of DATASETS.TEST is evaluated as {kind}; only coco will do")


def train_all(configs: Sequence[CfgNode], jobs: int, keep_weights: bool = False) -> None:
    """Do all trainings that are not finished, the first ones first.

    A training leaves `log.txt`, `metrics.json` and, for each test set, `inference/*/metrics.json` in its folder.

    Args:
        configs: of `training`.
        jobs: how many at a time.
        keep_weights: whether `model_final.pth` stays; all other checkpoints are deleted, they would fill a disk.

    Raises:
        InputError: a folder cannot be made or holds a training with other settings, or a training failed.
    """
    for cfg in configs:
        _check_folder(cfg)
    running: set[subprocess.Popen] = set()
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(_finish, cfg, keep_weights, running) for cfg in configs]
        try:
            for future in tqdm(as_completed(futures), total=len(futures), desc="trainings"):
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(running):
                process.terminate()  # they save where they are
            raise


def is_finished(cfg: CfgNode) -> bool:
    """Whether this training came to its end."""
    return (Path(cfg.OUTPUT_DIR) / "finished").exists()


def weights_of(cfg: CfgNode) -> Path:
    """Where a training leaves its weights."""
    return Path(cfg.OUTPUT_DIR) / "model_final.pth"


def read_metrics(cfg: CfgNode, task: str = "bbox") -> dict[str, float | None]:
    """What a finished training measured on its first test set; None where that has no such objects.

    A model that finds nothing at all has no AP in `metrics.json`. Here it is 0.
    """
    file = Path(cfg.OUTPUT_DIR) / "inference" / cfg.DATASETS.TEST[0] / "metrics.json"
    metrics = json.loads(file.read_text())[task]
    return dict.fromkeys(metrics, 0.0) if metrics.get("AP", 0) is None else metrics


def read_curve(cfg: CfgNode) -> list[tuple[int, float]]:
    """(iterations done, AP) at each evaluation of a finished training."""
    lines = map(json.loads, (Path(cfg.OUTPUT_DIR) / "metrics.json").read_text().splitlines())
    most = cfg.SOLVER.MAX_ITER
    return [(min(line["iteration"] + 1, most), line["bbox/AP"]) for line in lines if "bbox/AP" in line]


def read_memory(cfg: CfgNode) -> int:
    """The most memory, in MiB, that the process of a finished training held until its last iteration."""
    return max(map(int, re.findall(r"max_mem: (\d+)M", (Path(cfg.OUTPUT_DIR) / "log.txt").read_text())))


def interval(values: Sequence[float]) -> str:
    """Mean and half the 95 % interval of it by Student's t, without the latter for a single value."""
    mean = round(statistics.mean(values), 1) + 0.0  # and not -0.0
    if len(values) == 1:
        return f"{mean:.1f}"
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:.1f} ± {half:.1f}"


def _check_folder(cfg: CfgNode) -> None:
    settings = Path(cfg.OUTPUT_DIR) / "run.yaml"
    try:
        settings.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot make the folder {settings.parent}: {error.strerror}; choose another --output"
        ) from error
    if settings.exists() and settings.read_text() != cfg.dump():
        raise InputError(
            f"{cfg.OUTPUT_DIR} holds a training with other settings: choose another --output, or remove the folder"
        )


def _finish(cfg: CfgNode, keep_weights: bool, running: set[subprocess.Popen]) -> None:
    folder = Path(cfg.OUTPUT_DIR)
    if not is_finished(cfg):
        _train(cfg, running)
        (folder / "finished").touch()
    for checkpoint in folder.rglob("*.pth"):
        if not (keep_weights and checkpoint == weights_of(cfg)):
            checkpoint.unlink()


def _train(cfg: CfgNode, running: set[subprocess.Popen]) -> None:
    """Train in a process of one thread, from where it was stopped if it was; its log is OUTPUT_DIR/output.txt.

    Args:
        cfg: of the training.
        running: where the process is while it runs.

    Raises:
        InputError: the process failed.
    """
    folder = Path(cfg.OUTPUT_DIR)
    settings, output = folder / "run.yaml", folder / "output.txt"
    write_whole(settings, lambda file: file.write(cfg.dump().encode()))
    command = [sys.executable, str(ROOT / "train_net.py"), "--config-file", str(settings), "--resume"]
    with open(output, "a") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})
        running.add(process)
        status = process.wait()
        running.remove(process)
    if status:
        last = output.read_text().strip().rpartition("\n")[2]
        raise InputError(f"a training failed with status {status}, see {output}; its last words: {last}")
