"""Can the model learn four pictures by heart? Where it cannot, no data set and no patience will make it work."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from ..data import SparseRCNNDatasetMapper
from ..engine.build import prepare_for_training
from ..engine.optimizer import build_optimizer
from ..evaluation.in_memory import average_precision_at_half, evaluate, ground_truth
from ..randomness import Purpose, seed_generators

PICTURES = 4
WANTED = 90.0
WARMUP = 20
# Between looks at what is found, which cost about one iteration each.
LOOK_EVERY = 20
MOST_ITERATIONS = 400
SEED = 0


@dataclass
class Overfit:
    """How far a model came with four pictures.

    Attributes:
        ap50: on them, in percent.
        iterations: that it took.
        first, last: losses by name, of the first and of the last iteration.
        out_of_time: it was still learning when the time was over.
    """

    ap50: float
    iterations: int
    first: dict[str, float]
    last: dict[str, float]
    out_of_time: bool


def choose_pictures(records: Sequence[dict]) -> list[dict]:
    """Four pictures with as many objects as the middle one of those that have any."""
    shown = [record for record in records if any(not a.get("iscrowd") for a in record.get("annotations", ()))]
    shown.sort(key=lambda record: len(record["annotations"]))
    start = max(0, len(shown) // 2 - PICTURES // 2)
    return shown[start : start + PICTURES]


def overfit(cfg: CfgNode, model: nn.Module, records: Sequence[dict], seconds: float) -> Overfit:
    """Train on a few pictures, without augmentation, at the config's learning rate, until all is found.

    Args:
        cfg: the config.
        model: with the weights that a training would start from; it is changed.
        records: the pictures in detectron2's format.
        seconds: after which to give up.
    """
    cfg = _plain(cfg)
    model.train()
    prepare_for_training(cfg, model)
    seed_generators(SEED, Purpose.SAMPLE, 0)
    batch = [SparseRCNNDatasetMapper(cfg, is_train=True)(record) for record in records]
    optimizer = build_optimizer(cfg, model)
    rates = [group["lr"] for group in optimizer.param_groups]
    end, ap50, iteration = time.monotonic() + seconds, 0.0, 0
    first: dict[str, float] = {}
    losses: dict[str, Tensor] = {}
    with EventStorage():
        for iteration in range(1, MOST_ITERATIONS + 1):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * min(1.0, iteration / WARMUP)
            losses = model(batch)
            total: Tensor = torch.stack(list(losses.values())).sum()
            first = first or _numbers(losses)
            if not math.isfinite(float(total.detach())):
                break
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            late = time.monotonic() > end
            if iteration % LOOK_EVERY == 0 or late:
                ap50 = _ap50(model, batch, records)
            if ap50 >= WANTED or late:
                break
    return Overfit(ap50, iteration, first, _numbers(losses), ap50 < WANTED and time.monotonic() > end)


def _numbers(losses: dict[str, Tensor]) -> dict[str, float]:
    return {name: float(value.detach()) for name, value in losses.items()}


def _plain(cfg: CfgNode) -> CfgNode:
    """The config without what makes pictures differ from one iteration to the next."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.INPUT.RANDOM_FLIP, cfg.INPUT.CROP.ENABLED, cfg.INPUT.SCALE_JITTER = "none", False, []
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = (cfg.INPUT.MIN_SIZE_TEST,), "choice"
    cfg.INPUT.MAX_SIZE_TRAIN = cfg.INPUT.MAX_SIZE_TEST
    return cfg


def _ap50(model: nn.Module, batch: list[dict], records: Sequence[dict]) -> float:
    """AP at IoU 0.5 on the pictures that were trained on, in percent."""
    model.eval()
    inputs = [
        {"image": x["image"], "height": r["height"], "width": r["width"]} for x, r in zip(batch, records, strict=True)
    ]
    with torch.no_grad():
        outputs = [output["instances"].to("cpu") for output in model(inputs)]
    model.train()
    classes = 1 + max(a["category_id"] for record in records for a in record["annotations"])
    return average_precision_at_half(evaluate(ground_truth(records, classes), outputs))
