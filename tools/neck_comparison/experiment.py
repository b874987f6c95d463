"""One comparison from its config to its findings."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from pathlib import Path

from detectron2.config import CfgNode
from tqdm import tqdm

from sparsercnn.data import register_config_datasets
from sparsercnn.data.shapes import KINDS, prepare_shapes
from sparsercnn.engine import build_model, check_config
from sparsercnn.engine.level_report import count_levels, training_sizes
from sparsercnn.errors import InputError
from sparsercnn.evaluation.coco_matches import AREAS
from sparsercnn.evaluation.significance import Estimate
from sparsercnn.modeling.roi_routing import LevelRouting

from .arms import CONTROL, REFERENCE, RESNET, Arm, arm_config, fits
from .costs import Cost, budgets
from .laboratory import Laboratory, in_parallel
from .pictures import Pictures
from .report import BUDGETS, Findings
from .results import Score, compare
from .training import Training

# Seconds that a training takes beside its steps and evaluations.
OVERHEAD = 3


class Experiment:
    """A comparison of necks on one data set.

    Args:
        config: of the comparison. Its DATASETS.TEST names two data sets: learning rates are chosen on the first,
            results are those on the second.
        arms: necks to be compared with the reference; those that do not fit the bottom-up network are left out.
        options: keys and values that replace those of the config.
        seeds: trainings of each neck.
        output: folder of all comparisons.
        pool: of processes.
        processes: how many.

    Raises:
        InputError: a config is wrong.
    """

    def __init__(
        self,
        config: Path,
        arms: Sequence[Arm],
        options: tuple[str, ...],
        seeds: int,
        output: Path,
        pool: Executor,
        processes: int,
    ):
        self.name = config.stem
        self.seeds = seeds
        self.pool = pool
        self.folder = output / self.name
        self.cfg = arm_config(REFERENCE, config, options)
        if len(self.cfg.DATASETS.TRAIN) != 1 or len(self.cfg.DATASETS.TEST) != 2:
            raise InputError(
                f"{config}: DATASETS.TRAIN must name one data set and DATASETS.TEST two, the first to choose learning "
                "rates on and the second to test on"
            )
        self.others = [arm.name for arm in arms if fits(arm, self.cfg)]
        taking_part = [REFERENCE, CONTROL, *(arm for arm in arms if arm.name in self.others)]
        configs = {arm.name: arm_config(arm, config, options) for arm in taking_part}
        if len(configs) < len(taking_part):
            raise InputError("two neck configs have the same file name, or that of the reference or the control")
        for cfg in configs.values():
            cfg.OUTPUT_DIR = str(self.folder)
            cfg.freeze()
        self.laboratory = Laboratory(configs, self.folder, pool, processes)
        self.costs: dict[str, Cost] = {}
        self.budgets: dict[str, dict[str, int]] = {}
        self.rates: dict[str, float] = {}
        self.runs: dict[str, list[Training]] = {}
        self.results: dict[str, list[dict]] = {}

    def prepare(self) -> None:
        """Make generated data, check the configs, compute features, and measure what a step of each neck takes.

        Raises:
            InputError: a config or the data is wrong, or the folder holds another comparison.
        """
        make_shapes(self.cfg)
        register_config_datasets(self.cfg)
        for cfg in self.laboratory.configs.values():
            check_config(cfg)
        self.laboratory.remember_features()
        self.costs = self.laboratory.measure_costs()
        self.budgets = budgets(self.costs, REFERENCE.name, self.cfg.SOLVER.MAX_ITER)

    def seconds_of(self, training: Training) -> float:
        """How long a training takes in one process."""
        cost = self.costs[training.folder.parent.name]
        tests = len(training.read_at) * len(Pictures.of(self.cfg, training.test))
        return OVERHEAD + training.read_at[-1] * cost.step_seconds + tests * cost.test_seconds

    def seconds(self) -> float:
        """How long all trainings take in one process."""
        rate = self.cfg.SOLVER.BASE_LR  # which one will be chosen makes no difference
        tuning = [training for name in self.costs for training in self.laboratory.tuning_runs(name)]
        runs = [training for name in self.costs for training in self._test_runs(name, rate)]
        return sum(self.seconds_of(training) for training in (*tuning, *runs))

    def _test_runs(self, name: str, rate: float) -> list[Training]:
        return self.laboratory.test_runs(name, rate, [self.budgets[budget][name] for budget in BUDGETS], self.seeds)

    def run(self, bar: tqdm) -> Findings | Estimate:
        """Do all trainings: the reference and the control first.

        Args:
            bar: moved on by the seconds of each training that is done.

        Returns:
            The findings; or, if the control is not seen, only what the top-down path brings. Nothing else is trained
            then.
        """
        self._train([REFERENCE.name, CONTROL.name], bar)
        scores = self._scores(["iterations"])["iterations"]
        gain = scores[REFERENCE.name].minus(scores[CONTROL.name])
        if gain.low <= 0:
            return gain
        self._train(self.others, bar)
        return self._findings(gain)

    def _train(self, names: Sequence[str], bar: tqdm) -> None:
        """Choose the learning rate of some necks, and do their trainings."""
        tuning = {name: self.laboratory.tuning_runs(name) for name in names}
        bar.set_description(f"{self.name}, learning rates")
        found = iter(self.laboratory.do([t for runs in tuning.values() for t in runs], self.seconds_of, bar))
        for name, runs in tuning.items():
            aps = {training.rate: next(found)["metrics"][str(training.read_at[0])]["all"] for training in runs}
            self.rates[name] = max(aps, key=lambda rate: aps[rate])
            self.runs[name] = self._test_runs(name, self.rates[name])
        bar.set_description(f"{self.name}, seeds")
        results = iter(self.laboratory.do([t for name in names for t in self.runs[name]], self.seconds_of, bar))
        for name in names:
            self.results[name] = [next(results) for _ in self.runs[name]]

    def _scores(self, kinds: Sequence[str]) -> dict[str, dict[str, Score]]:
        """{budget: {neck: AP}} of all necks that are trained."""
        jobs = [(Score.of, (self.runs[name], self.budgets[budget][name])) for budget in kinds for name in self.runs]
        found = iter(in_parallel(self.pool, jobs))
        return {budget: {name: next(found) for name in self.runs} for budget in kinds}

    def _findings(self, gain: Estimate) -> Findings:
        scores, tried = self._scores(list(BUDGETS)), self.laboratory.rates()
        return Findings(
            title=self.name,
            caption=self._caption(),
            levels=self.cfg.MODEL.ROI_HEADS.IN_FEATURES,
            annotated=annotated_levels(self.cfg),
            costs=self.costs,
            rates=self.rates,
            iterations=self.budgets,
            scores=scores,
            by_size={budget: {name: self._by_size(name, budget) for name in self.runs} for budget in BUDGETS},
            comparisons=compare(scores, REFERENCE.name, self.others),
            control_gain=gain,
            read={name: _sum(result["levels"] for result in results) for name, results in self.results.items()},
            unreached={name: _in_all(result["unreached"] for result in rs) for name, rs in self.results.items()},
            diverged={name: sum(result["diverged"] for result in results) for name, results in self.results.items()},
            tuned_at_the_edge=[name for name, rate in self.rates.items() if rate in (tried[0], tried[-1])],
        )

    def _by_size(self, name: str, budget: str) -> dict[str, float]:
        """{area: AP}, the mean over seeds."""
        key = str(self.budgets[budget][name])
        return {area: sum(r["metrics"][key][area] for r in self.results[name]) / self.seeds for area in AREAS}

    def _caption(self) -> str:
        cfg = self.cfg
        train, tuning, test = (Pictures.of(cfg, name) for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))
        objects = sum(len(record["annotations"]) for record in test.records)
        is_resnet = cfg.MODEL.NECK.BOTTOM_UP == RESNET
        network = f"ResNet-{cfg.MODEL.RESNETS.DEPTH}" if is_resnet else cfg.MODEL.TIMM.NAME
        state = "frozen" if self.laboratory.features else "trained with the rest"
        return (
            f"Trained on {train.name} ({len(train)} pictures), learning rates chosen on {tuning.name} ({len(tuning)}), "
            f"tested on {test.name} ({len(test)} pictures with {objects} objects). Bottom-up network {network}, "
            f"{state}; {cfg.SOLVER.IMS_PER_BATCH} pictures an iteration; {self.seeds} seeds."
        )


def _sum(rows: Iterable[Sequence[int]]) -> list[int]:
    return [sum(column) for column in zip(*rows, strict=True)]


def _in_all(lists: Iterable[Sequence[str]]) -> list[str]:
    return sorted(set.intersection(*map(set, lists)))


def make_shapes(cfg: CfgNode) -> None:
    """Generate the data sets of shapes that a config names, if they are not there."""
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    root = Path(os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets")))
    for name, kind in KINDS.items():
        if any(f"{name}_{split}" in names for split in kind.counts):
            prepare_shapes(root / name, kind.counts, kind=name)


def annotated_levels(cfg: CfgNode) -> list[int]:
    """How many annotated boxes of the training data belong to each level of the detector, lowest first."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.TIMM.PRETRAINED = False
    routing = next(module for module in build_model(cfg).modules() if isinstance(module, LevelRouting))
    records = Pictures.of(cfg, cfg.DATASETS.TRAIN[0]).records
    return count_levels(routing, training_sizes(records, [cfg.INPUT.MIN_SIZE_TEST], cfg.INPUT.MAX_SIZE_TEST))
