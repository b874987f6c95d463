"""One training of a comparison: a neck, a learning rate and a seed; read off after several numbers of iterations."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances
from torch import Tensor, nn

from sparsercnn.data import register_config_datasets
from sparsercnn.engine import build_lr_scheduler, build_model, build_optimizer
from sparsercnn.engine.build import amp_precision, prepare_for_training
from sparsercnn.evaluation.coco_matches import AREAS, CocoMatches, average_precision
from sparsercnn.evaluation.in_memory import evaluate, ground_truth
from sparsercnn.files import write_json
from sparsercnn.modeling.roi_routing import LevelRouting
from sparsercnn.randomness import Purpose, seed_generators

from .average import PowerAverage
from .frozen import FeatureStore, RememberedBackbone
from .pictures import Pictures, draw_order

TEST_BATCH = 8


@dataclass(frozen=True)
class Training:
    """A training to be done.

    Attributes:
        cfg: the detector and its training, as `CfgNode.dump` writes it.
        rate: learning rate.
        seed: of weights, of the order of pictures and of their flips.
        read_at: numbers of iterations after which it is evaluated, ascending.
        test: data set of the evaluation.
        folder: for the results.
        features: folder of a `FeatureStore` for each data set, None if the bottom-up network learns.
    """

    cfg: str
    rate: float
    seed: int
    read_at: tuple[int, ...]
    test: str
    folder: Path
    features: Path | None

    @property
    def result(self) -> Path:
        """The file that is there once the training is done."""
        return self.folder / "result.json"

    def settings(self) -> dict:
        """All that the result depends on, to be stored with it."""
        return {key: value for key, value in asdict(self).items() if key not in ("folder", "features")}


class Detector:
    """A detector in training, fed with pictures of a data set by their number.

    Args:
        cfg: the detector.
        features: see `Training`.
    """

    def __init__(self, cfg: CfgNode, features: Path | None):
        self.model: Any = build_model(cfg)  # the backbone is of `build_neck_backbone`, which has a bottom-up network
        self.features = features
        self.precision = amp_precision(cfg)
        if features:
            backbone: Any = self.model.backbone
            backbone.bottom_up = RememberedBackbone(backbone.bottom_up)
        prepare_for_training(cfg, self.model)
        self.model.train()
        self._stores: dict[str, FeatureStore] = {}

    def __call__(self, pictures: Pictures, requests: Sequence[tuple[int, bool]]) -> dict[str, Tensor] | list[dict]:
        """What the model makes of pictures, (number, mirrored) each: losses in training, else detections."""
        if self.features:
            store = self._stores.setdefault(pictures.name, FeatureStore(self.features / pictures.name))
            self.model.backbone.bottom_up.look_up(store, requests)
        with torch.autocast("cpu", self.precision, enabled=self.precision is not None):
            return self.model([pictures.sample(*request) for request in requests])

    def losses(self, pictures: Pictures, requests: Sequence[tuple[int, bool]]) -> Tensor:
        """The sum of all losses."""
        losses = self(pictures, requests)
        assert isinstance(losses, dict)
        return torch.stack(list(losses.values())).sum()

    def detect(self, pictures: Pictures) -> list[Instances]:
        """Detections in all pictures of a data set."""
        starts = range(0, len(pictures), TEST_BATCH)
        batches = [[(i, False) for i in range(s, min(s + TEST_BATCH, len(pictures)))] for s in starts]
        return [instances for batch in batches for instances in self.detect_in(pictures, batch)]

    @torch.no_grad()
    def detect_in(self, pictures: Pictures, requests: Sequence[tuple[int, bool]]) -> list[Instances]:
        """Detections in some pictures, (number, mirrored) each."""
        self.model.eval()
        outputs = self(pictures, requests)
        self.model.train()
        assert isinstance(outputs, list)
        return [output["instances"] for output in outputs]


class LevelCounter:
    """Counts the levels that boxes read in a training, all refinement stages together.

    Args:
        model: the detector.

    Attributes:
        counts: of each level, lowest first.
    """

    def __init__(self, model: nn.Module):
        self.routing = next(module for module in model.modules() if isinstance(module, LevelRouting))
        self.counts = torch.zeros(len(self.routing.levels), dtype=torch.int64)
        self.routing.register_forward_pre_hook(self._count)

    def _count(self, routing: nn.Module, inputs: tuple) -> None:
        _, boxes = inputs
        if not routing.training:
            return
        if type(routing) is LevelRouting:
            levels = routing.assign_levels(boxes.detach()) - routing.levels[0]
            self.counts += torch.bincount(levels.flatten(), minlength=len(self.counts))
        else:
            self.counts += boxes.shape[:2].numel()


class Progress:
    """A detector, what trains it, and what is known of the training so far.

    Args:
        cfg: the training.
        detector: its model.

    Attributes:
        iterations: done.
        goes_on: False once a number was infinite or NaN.
        average: of the weights.
        levels: that boxes read.
        unreached: names of the neck's parameters that had no gradient yet.
    """

    def __init__(self, cfg: CfgNode, detector: Detector):
        self.detector = detector
        self.optimizer = build_optimizer(cfg, detector.model)
        self.scheduler = build_lr_scheduler(cfg, self.optimizer)
        self.average = PowerAverage(detector.model)
        self.levels = LevelCounter(detector.model)
        self.iterations = 0
        self.goes_on = True
        parameters = detector.model.backbone.named_parameters()
        self._neck = {name: p for name, p in parameters if not name.startswith("bottom_up.") and p.requires_grad}
        self.unreached = sorted(self._neck)

    def step(self, pictures: Pictures, requests: Sequence[tuple[int, bool]]) -> None:
        """One iteration on these pictures, (number, mirrored) each."""
        self.optimizer.zero_grad()
        try:
            loss = self.detector.losses(pictures, requests)
            self.goes_on = bool(loss.isfinite())
        except FloatingPointError:
            self.goes_on = False
        if not self.goes_on:
            return
        loss.backward()
        self.unreached = [name for name in self.unreached if not _has_gradient(self._neck[name])]
        self.optimizer.step()
        self.scheduler.step()
        self.average.update()
        self.iterations += 1


def _has_gradient(parameter: nn.Parameter) -> bool:
    return parameter.grad is not None and bool(parameter.grad.any())


def train(training: Training) -> None:
    """Do a training, and write its results: `result.json` and, for each evaluation, `matches_ITERATIONS.npz`.

    A training whose numbers become infinite or NaN is over: what was to be read off later has found nothing.
    """
    cfg = CfgNode.load_cfg(training.cfg)
    cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER = training.rate, training.read_at[-1]
    register_config_datasets(cfg)
    pictures, test = Pictures.of(cfg, cfg.DATASETS.TRAIN[0]), Pictures.of(cfg, training.test)
    truth = ground_truth(test.records, cfg.MODEL.SparseRCNN.NUM_CLASSES)
    seed_generators(training.seed, Purpose.MODEL)
    detector = Detector(cfg, training.features)
    progress = Progress(cfg, detector)
    order = draw_order(len(pictures), training.seed)
    start, metrics = time.process_time(), {}
    training.folder.mkdir(parents=True, exist_ok=True)
    for iterations in training.read_at:
        while progress.goes_on and progress.iterations < iterations:
            progress.step(pictures, [next(order) for _ in range(cfg.SOLVER.IMS_PER_BATCH)])
        with progress.average.applied():
            matches = CocoMatches.of(evaluate(truth, detector.detect(test) if progress.goes_on else []))
        matches.save(training.folder / f"matches_{iterations}.npz")
        metrics[iterations] = {area: float(average_precision(matches, area=area)[0]) for area in AREAS}
    result = {
        "settings": training.settings(),
        "metrics": metrics,
        "levels": progress.levels.counts.tolist(),
        "unreached": progress.unreached,
        "diverged": not progress.goes_on,
        "seconds": time.process_time() - start,
    }
    write_json(training.result, result)
