"""The trainings of a comparison: features and costs first, then as many at a time as there are processes."""

from __future__ import annotations

import json
import logging
import os
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from tqdm import tqdm

from sparsercnn.data import register_config_datasets
from sparsercnn.engine import build_model
from sparsercnn.errors import InputError
from sparsercnn.files import write_json

from .costs import Cost, measure
from .frozen import FeatureStore, is_frozen
from .pictures import Pictures
from .training import Training, train

# Learning rates that every neck tries, relative to that of the config.
RATES = (1 / 3, 1.0, 3.0)
TUNING_SEED = 1_000
"""Of the trainings that choose a learning rate; those that are reported have seeds from 1."""
TUNING_SHARE = 0.5
"""Length of these trainings relative to that of the reference."""

Job = tuple[Callable[..., Any], tuple]
"""A function and its arguments."""


def start_worker() -> None:
    """Make a process one that does one training at a time, in one thread and without a word."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    warnings.simplefilter("ignore")


@contextmanager
def start_pool(processes: int) -> Iterator[Executor]:
    """Processes for trainings side by side, in the context; what they have begun is given up when it ends early.

    Raises:
        InputError: one of them was killed.
    """
    os.environ["OMP_NUM_THREADS"] = "1"  # they inherit it, and the libraries read it when they are loaded
    pool = ProcessPoolExecutor(processes, get_context("spawn"), start_worker)
    try:
        yield pool
    except BaseException as error:
        for process in active_children():
            process.terminate()
        if isinstance(error, BrokenProcessPool):
            raise InputError(
                "a process of the comparison was killed; where memory ran out, give fewer --processes. Continue with "
                "the same command"
            ) from error
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _call(job: Job) -> Any:
    function, arguments = job
    return function(*arguments)


def in_parallel(pool: Executor, jobs: Sequence[Job], done: Callable[[int], object] = lambda number: None) -> list:
    """Results of jobs, in their order.

    Args:
        pool: of processes.
        jobs: longest first, so that the processes end together.
        done: called with the number of each job that has ended, in their order.
    """
    results = []
    for number, result in enumerate(pool.map(_call, jobs)):
        results.append(result)
        done(number)
    return results


class Laboratory:
    """What trains detectors that differ in the neck, on one data set.

    Args:
        configs: the detector of each neck, by name.
        folder: for everything that is kept.
        pool: of processes.
        processes: how many.
    """

    def __init__(self, configs: Mapping[str, CfgNode], folder: Path, pool: Executor, processes: int):
        self.configs = dict(configs)
        self.folder = folder
        self.pool = pool
        self.processes = processes
        self.cfg = next(iter(self.configs.values()))
        self.tuning, self.test = self.cfg.DATASETS.TEST
        self.features: Path | None = None

    def rates(self) -> list[float]:
        """The learning rates that every neck tries."""
        return [float(f"{rate * self.cfg.SOLVER.BASE_LR:.3g}") for rate in RATES]

    def remember_features(self) -> None:
        """Compute what a frozen bottom-up network sees, once; nothing if it learns, or pictures differ in size."""
        names = [self.cfg.DATASETS.TRAIN[0], self.tuning, self.test]
        of_one_size = all(Pictures.of(self.cfg, name).have_one_size() for name in names)
        model: Any = build_model(self.cfg)
        if not of_one_size or not is_frozen(model.backbone.bottom_up):
            return
        self.features = self.folder / "features"
        for name in names:
            finished = self.features / name / "finished"
            if finished.exists():
                continue
            count = len(Pictures.of(self.cfg, name))
            common = self.cfg.dump(), name, self.features
            make_store(*common)
            parts = [range(i, count, self.processes) for i in range(self.processes)]
            in_parallel(self.pool, [(fill_store, (*common, part)) for part in parts])
            finished.touch()

    def measure_costs(self) -> dict[str, Cost]:
        """The costs of all necks, measured when the comparison started first.

        Raises:
            InputError: it was started with other necks or settings.
        """
        file = self.folder / "costs.json"
        settings = {name: cfg.dump() for name, cfg in self.configs.items()}
        if file.exists():
            stored = json.loads(file.read_text())
            if stored["settings"] != settings:
                raise InputError(
                    f"{self.folder} holds a comparison of other necks or settings: choose another --output"
                )
            return {name: Cost(**cost) for name, cost in stored["costs"].items()}
        costs: dict[str, Cost] = self.pool.submit(measure, self.configs, self.features).result()
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(file, {"settings": settings, "costs": {name: asdict(cost) for name, cost in costs.items()}})
        return costs

    def tuning_runs(self, name: str) -> list[Training]:
        """The trainings that choose the learning rate of a neck."""
        read_at = (max(1, round(TUNING_SHARE * self.cfg.SOLVER.MAX_ITER)),)
        return [self._training(name, rate, TUNING_SEED, read_at, self.tuning) for rate in self.rates()]

    def test_runs(self, name: str, rate: float, read_at: Iterable[int], seeds: int) -> list[Training]:
        """The trainings of a neck that are reported."""
        in_order = tuple(sorted(set(read_at)))
        return [self._training(name, rate, seed, in_order, self.test) for seed in range(1, seeds + 1)]

    def _training(self, name: str, rate: float, seed: int, read_at: tuple[int, ...], test: str) -> Training:
        folder = self.folder / name / f"{test}_rate{rate:g}_seed{seed}"
        return Training(self.configs[name].dump(), rate, seed, read_at, test, folder, self.features)

    def do(self, trainings: Sequence[Training], seconds: Callable[[Training], float], bar: tqdm) -> list[dict]:
        """Do what is not done yet of some trainings, longest first.

        Args:
            trainings: to be done.
            seconds: how long one takes.
            bar: moved on by the seconds of each that is done.

        Returns:
            What each wrote to `result.json`.

        Raises:
            InputError: a folder holds a training with other settings.
        """
        missing = sorted((t for t in trainings if not _is_done(t)), key=seconds, reverse=True)
        bar.update(sum(map(seconds, trainings)) - sum(map(seconds, missing)))
        in_parallel(self.pool, [(train, (t,)) for t in missing], lambda number: bar.update(seconds(missing[number])))
        return [json.loads(training.result.read_text()) for training in trainings]


def _is_done(training: Training) -> bool:
    if not training.result.exists():
        return False
    stored = json.loads(training.result.read_text())["settings"]
    if stored != json.loads(json.dumps(training.settings())):
        raise InputError(f"{training.folder} holds a training with other settings: choose another --output")
    return True


def make_store(cfg: str, name: str, features: Path) -> None:
    """Make room for the features of a data set; the arguments are those of `fill_store`."""
    settings, store = CfgNode.load_cfg(cfg), FeatureStore(features / name)
    pictures, model = Pictures.of(settings, name), build_model(settings).eval()
    store.create(len(pictures), _features(model, pictures, 0, False))


def fill_store(cfg: str, name: str, features: Path, numbers: Iterable[int]) -> None:
    """Compute the features of some pictures, plain, and mirrored where they are for training.

    Args:
        cfg: the detector, as `CfgNode.dump` writes it.
        name: of the data set.
        features: folder of all data sets.
        numbers: of the pictures.
    """
    settings, store = CfgNode.load_cfg(cfg), FeatureStore(features / name)
    register_config_datasets(settings)
    pictures, model = Pictures.of(settings, name), build_model(settings).eval()
    for number in numbers:
        for mirrored in (False, True) if name in settings.DATASETS.TRAIN else (False,):
            store.write(number, mirrored, _features(model, pictures, number, mirrored))


@torch.no_grad()
def _features(model: Any, pictures: Pictures, number: int, mirrored: bool) -> dict[str, torch.Tensor]:
    return model.backbone.bottom_up(model.preprocess_image([pictures.sample(number, mirrored)]).tensor)
