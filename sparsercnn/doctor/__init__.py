"""Finds why a training does not work: in its config, its data, its weights, and its first steps."""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from ..engine.level_report import examine_levels
from ..errors import InputError
from .config_findings import config_findings
from .data_findings import data_findings
from .finding import Finding
from .overfit import WANTED, WARMUP, Overfit, choose_pictures, overfit
from .weights import Weights, load_and_measure

__all__ = ["Diagnosis", "Finding", "examine"]

# A loss at the start that is so many times what follows from the prior is none of a fresh model.
LOSS_FACTOR = 3
# Of the loss of the first step, what the last one is at most where something is learned.
FALLEN = 0.9


@dataclass
class Diagnosis:
    """What the doctor found.

    Attributes:
        findings: what is wrong, the causes before what follows from them.
        remarks: what was looked at and is well, or could not be looked at.
        table: which weights the model has, as text; empty if it could not be built.
    """

    findings: list[Finding] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    table: str = ""


def examine(cfg: CfgNode, seconds: float = 60) -> Diagnosis:
    """Look for what keeps a training from working.

    Args:
        cfg: as `load_config` returns it.
        seconds: at most, for the attempt to learn four pictures by heart; 0 to leave that out.
    """
    found = Diagnosis(config_findings(cfg))
    absent: list[str] = []
    found.findings += data_findings(cfg, absent)
    if absent:
        found.remarks.append(f"not looked at, because they are not on this machine: {', '.join(absent)}")
    try:
        weights = load_and_measure(cfg)
    except InputError as error:
        if not found.findings:
            found.findings.append(Finding("model", str(error), "the key that the line names"))
        return found
    found.table = weights.table()
    found.remarks.append(weights.source)
    found.findings += weights.findings
    if any(finding.about in ("annotations", "class ids", "number of classes") for finding in found.findings):
        found.remarks.append("the model is not tried on these data before they are mended")
    elif not absent and cfg.DATASETS.TRAIN and not cfg.MODEL.LOAD_PROPOSALS:
        _try(cfg, weights, seconds, found)
    return found


def _try(cfg: CfgNode, weights: Weights, seconds: float, found: Diagnosis) -> None:
    """Levels that learn nothing, the loss at the start, and four pictures by heart."""
    records = [record for name in cfg.DATASETS.TRAIN for record in DatasetCatalog.get(name)]
    line, problems = examine_levels(cfg, weights.model, records)
    found.remarks += [line] if line else []
    if problems:
        change = "INPUT.MIN_SIZE_TRAIN, to larger pictures, or MODEL.ROI_HEADS.IN_FEATURES, to fewer levels"
        found.findings.append(Finding("levels", "; ".join(problems), change))
    pictures = choose_pictures(records)
    if not seconds or not pictures or cfg.MODEL.META_ARCHITECTURE == "ProposalNetwork":
        return
    objects = sum(len(record["annotations"]) for record in pictures)
    try:
        result = overfit(cfg, weights.model, pictures, seconds)
    except InputError as error:
        found.findings.append(Finding("first steps", str(error), "what the line names"))
        return
    found.findings += _judge_start(cfg, result, objects, sum(_losses(result.first)))
    finding = _judge_overfit(cfg, result)
    if finding:
        found.findings.append(finding)
    else:
        first, last = (sum(_losses(losses)) for losses in (result.first, result.last))
        found.remarks.append(
            f"four pictures by heart: {result.ap50:.0f} AP50 after {result.iterations} iterations; the loss went from "
            f"{first:.3g} to {last:.3g}"
            + ("; it was still learning when the time was over (--seconds)" if result.out_of_time else "")
        )


def _losses(losses: dict[str, float]) -> list[float]:
    return list(losses.values())


def expected_class_loss(cfg: CfgNode, objects: int, pictures: int) -> float:
    """What `loss_ce` is at most when training starts, if every score is `PRIOR_PROB`.

    That of the background is the focal loss of all scores; an object's is at most the cross entropy.

    Args:
        cfg: the config of a sparse detector with `USE_FOCAL`.
        objects, pictures: of the batch.
    """
    head, prior = cfg.MODEL.SparseRCNN, 0.01
    scores = head.NUM_PROPOSALS * head.NUM_CLASSES * pictures / max(1, objects)
    background = (1 - head.ALPHA) * prior**head.GAMMA * -math.log(1 - prior) * scores
    return head.CLASS_WEIGHT * (background - math.log(prior))


def _judge_start(cfg: CfgNode, result: Overfit, objects: int, total: float) -> Iterator[Finding]:
    if not math.isfinite(total):
        return  # said by `_judge_overfit`
    head = cfg.MODEL.SparseRCNN
    if cfg.MODEL.META_ARCHITECTURE == "SparseRCNN" and head.USE_FOCAL and "loss_ce" in result.first:
        expected = expected_class_loss(cfg, objects, 4)
        if result.first["loss_ce"] > LOSS_FACTOR * expected:
            problem = (
                f"loss_ce is {result.first['loss_ce']:.3g} in the first step, where at most {expected:.2g} is expected"
            )
            yield Finding("loss at start", problem, "MODEL.SparseRCNN.PRIOR_PROB 0.01, and weights of this model")


def _judge_overfit(cfg: CfgNode, result: Overfit) -> Finding | None:
    first, last = sum(_losses(result.first)), sum(_losses(result.last))
    rate = cfg.SOLVER.BASE_LR
    if not math.isfinite(last):
        problem = f"the loss is not finite after {result.iterations} iterations"
        return Finding("four pictures by heart", problem, f"SOLVER.BASE_LR {rate / 10:g}")
    if result.ap50 >= WANTED:
        return None
    reached = f"{result.ap50:.0f} AP50 after {result.iterations} iterations, where {WANTED:.0f} are expected"
    if last > first:
        return Finding("four pictures by heart", f"{reached}; the loss rises", f"SOLVER.BASE_LR {rate / 10:g}")
    if result.out_of_time and (last < FALLEN * first or result.iterations < 2 * WARMUP):
        return None  # nothing is known yet
    if last > FALLEN * first:
        problem = f"{reached}; the loss hardly falls, from {first:.3g} to {last:.3g}"
        return Finding("four pictures by heart", problem, f"SOLVER.BASE_LR {rate * 10:g}, or what is frozen")
    problem = f"{reached}, though the loss falls: labels, boxes or input size contradict what is seen"
    return Finding("four pictures by heart", problem, "the annotations: tools/check_dataset.py draws them")


def quiet() -> None:
    """Keep the logs of building and loading, in which a report would drown, to errors."""
    for name in ("detectron2", "fvcore", "sparsercnn"):
        logging.getLogger(name).setLevel(logging.ERROR)
