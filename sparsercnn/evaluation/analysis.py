"""What an evaluation's result file tells beyond AP, computed by the library hotcoco (MIT) on COCO's protocol.

Error kinds: Bolya et al., TIDE, ECCV 2020. Intervals: images are drawn again with replacement, `significance.py`.
"""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from detectron2.structures import BoxMode
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ..errors import InputError
from .coco_matches import AREAS, CocoMatches, average_precision
from .results import ImageResult, best_f1_threshold
from .significance import LEVEL, draw_images

REPLICATES = 1000
ERRORS = {
    "Cls": "the place of an object, another class",
    "Loc": "the class of an object, but not its place (IoU 0.1 to 0.5)",
    "Both": "neither class nor place",
    "Dupe": "an object that a better detection has found already",
    "Bkg": "no object there",
    "Miss": "objects without a detection",
}
"""The kinds of errors of TIDE."""


@dataclass(frozen=True)
class Interval:
    """A value and the interval that covers it with the chance `LEVEL` if other images are drawn."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1f} ({self.low:.1f} to {self.high:.1f})"


@dataclass(frozen=True)
class Analysis:
    """What `analyze` finds; AP, precision and recall in percent.

    Attributes:
        metrics: COCO's twelve numbers and the AP of each class, by hotcoco's names, 0 to 1; −1 where nothing counts.
        by_area: AP over all classes for each of `AREAS` that has objects.
        by_class: AP of each class.
        precision: (T, R, K) at T IoU thresholds, R recalls, for K classes; −1 where a class has no object.
        errors: of each kind of `ERRORS`, how much AP50 would be gained without them, and how many there are.
        threshold: the score with the best F1.
        confusion: (K + 1, K + 1) over that score: rows are objects, columns detections, the last one is nothing.
        calibration: for each range of scores the mean score, the share of right detections, and how many there are.
        calibration_error: mean distance of score and share, weighted by the number.
    """

    metrics: dict[str, float]
    by_area: dict[str, Interval]
    by_class: dict[str, Interval]
    precision: np.ndarray
    errors: dict[str, tuple[float, int]]
    threshold: float
    confusion: np.ndarray
    calibration: list[tuple[float, float, int]]
    calibration_error: float


def analyze(results: Sequence[ImageResult], class_names: Sequence[str], replicates: int = REPLICATES) -> Analysis:
    """Analyze detections of a data set.

    Args:
        results: of each image, see `read_results`.
        class_names: of all classes.
        replicates: test sets drawn for the intervals.

    Raises:
        InputError: hotcoco is not installed, or there are no detections.
    """
    evaluation = _evaluate(results, class_names)
    matches = _matches(results, class_names)
    weights = draw_images(len(results), replicates)
    threshold = best_f1_threshold(list(results))
    errors = evaluation.tide_errors()
    calibration = evaluation.calibration()
    confusion = evaluation.confusion_matrix(min_score=threshold)
    return Analysis(
        metrics=evaluation.get_results(per_class=True),
        by_area={area: _interval(matches, weights, area) for area in AREAS if matches.objects[AREAS.index(area)].any()},
        by_class={
            name: _interval(_of_class(matches, k), weights, "all")
            for k, name in enumerate(class_names)
            if matches.objects[0, k].any()
        },
        precision=evaluation.eval["precision"][:, :, :, 0, 2],
        errors={kind: (100 * errors["delta_ap"].get(kind, 0.0), errors["counts"].get(kind, 0)) for kind in ERRORS},
        threshold=threshold,
        confusion=np.array(confusion["matrix"]),
        calibration=[(b["avg_confidence"], b["avg_accuracy"], b["count"]) for b in calibration["bins"]],
        calibration_error=calibration["ece"],
    )


def _as_coco(results: Sequence[ImageResult], class_names: Sequence[str]) -> tuple[dict[str, Any], list[dict]]:
    """Ground truth and detections in COCO's format, images and classes numbered from 1: names may be any outside."""
    categories = [{"id": i, "name": name} for i, name in enumerate(class_names, 1)]
    truth: dict[str, Any] = {"images": [], "annotations": [], "categories": categories}
    found = []
    for image, result in enumerate(results, 1):
        height, width = result.detections.image_size
        truth["images"].append({"id": image, "height": height, "width": width})
        for annotation in result.record.get("annotations", []):
            box = BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYWH_ABS)
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": image,
                    "category_id": annotation["category_id"] + 1,
                    "bbox": list(map(float, box)),
                    "area": float(annotation.get("area", box[2] * box[3])),
                    "iscrowd": int(annotation.get("iscrowd", 0)),
                }
            )
        boxes = BoxMode.convert(result.detections.pred_boxes.tensor, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS).tolist()
        scores, classes = result.detections.scores.tolist(), result.detections.pred_classes.tolist()
        found += [
            {"image_id": image, "category_id": c + 1, "bbox": box, "score": score}
            for box, score, c in zip(boxes, scores, classes, strict=True)
        ]
    if not found:
        raise InputError("the model found nothing at all, so there is nothing to analyze")
    return truth, found


def _evaluate(results: Sequence[ImageResult], class_names: Sequence[str]) -> Any:
    """hotcoco's evaluation, complete."""
    try:
        import hotcoco
    except ImportError as error:
        raise InputError("analysis needs the package hotcoco: pip install 'sparsercnn[analysis]'") from error
    truth, found = _as_coco(results, class_names)
    given = hotcoco.COCO(truth)
    evaluation = hotcoco.COCOeval(given, given.load_res(found), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.summarize()
    return evaluation


def _matches(results: Sequence[ImageResult], class_names: Sequence[str]) -> CocoMatches:
    truth, found = _as_coco(results, class_names)
    with contextlib.redirect_stdout(io.StringIO()):
        given = COCO()
        given.dataset = cast(Any, truth)
        given.createIndex()
        evaluation = COCOeval(given, given.loadRes(found), "bbox")
        evaluation.evaluate()
    return CocoMatches.of(evaluation)


def _of_class(matches: CocoMatches, k: int) -> CocoMatches:
    one = slice(k, k + 1)
    return CocoMatches(
        matches.objects[:, one], matches.image[one], matches.found[one], matches.ignored[one], matches.recalls
    )


def _interval(matches: CocoMatches, weights: np.ndarray, area: str) -> Interval:
    """AP with the percentile interval of the drawn test sets; those without an object say nothing."""
    value = float(average_precision(matches, area=area)[0])
    drawn = average_precision(matches, weights, area)
    low, high = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))
