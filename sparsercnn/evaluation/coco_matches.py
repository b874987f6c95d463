"""COCO's AP of resampled images, hundreds of times a second: the matching is done once, and images get weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pycocotools.cocoeval import COCOeval

AREAS = ("all", "small", "medium", "large")
"""COCO's ranges of the area of objects: all, below 32² pixels, up to 96², above."""


@dataclass(frozen=True)
class CocoMatches:
    """Which detections found an object, as COCO's evaluation decides, class by class.

    Attributes:
        objects: (A, K, I) how many objects of a class count in an image, for each range of areas.
        image: for each of K classes, (D,) the image of each detection, best score first.
        found: for each class, (A, T, D) bool: the detection has an object at the t-th IoU threshold.
        ignored: for each class, (A, T, D) bool: it counts neither as right nor as wrong.
        recalls: (R,) where precision is read.
    """

    objects: np.ndarray
    image: list[np.ndarray]
    found: list[np.ndarray]
    ignored: list[np.ndarray]
    recalls: np.ndarray

    @classmethod
    def of(cls, evaluation: COCOeval) -> CocoMatches:
        """The matches of an evaluation after its `evaluate()`."""
        params = evaluation.params
        most = params.maxDets[-1]
        shape = len(params.catIds), len(params.areaRng), len(params.imgIds)
        cells = np.array(evaluation.evalImgs, dtype=object).reshape(shape)
        objects = np.zeros((shape[1], shape[0], shape[2]), dtype=np.int64)
        image, found, ignored = [], [], []
        for k, by_area in enumerate(cells):
            for a, by_image in enumerate(by_area):
                objects[a, k] = [0 if cell is None else int((cell["gtIgnore"] == 0).sum()) for cell in by_image]
            scores = [np.empty(0) if cell is None else np.array(cell["dtScores"][:most]) for cell in by_area[0]]
            # As `accumulate` sorts.
            order = np.argsort(-np.concatenate(scores), kind="mergesort")
            image.append(np.repeat(np.arange(shape[2]), [len(s) for s in scores])[order])
            found.append(_flags(by_area, "dtMatches", most, len(params.iouThrs))[..., order])
            ignored.append(_flags(by_area, "dtIgnore", most, len(params.iouThrs))[..., order])
        return cls(objects, image, found, ignored, params.recThrs)

    def save(self, path: Path) -> None:
        """Write them to an npz file, which `load` reads."""
        arrays = {"objects": self.objects, "recalls": self.recalls}
        for k, columns in enumerate(zip(self.image, self.found, self.ignored, strict=True)):
            arrays |= {
                f"{name}{k}": column for name, column in zip(("image", "found", "ignored"), columns, strict=True)
            }
        with open(path, "wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path) -> CocoMatches:
        """Read what `save` wrote."""
        with np.load(path) as arrays:
            classes = range(arrays["objects"].shape[1])
            image, found, ignored = ([arrays[f"{name}{k}"] for k in classes] for name in ("image", "found", "ignored"))
            return cls(arrays["objects"], image, found, ignored, arrays["recalls"])


def _flags(by_area: np.ndarray, name: str, most: int, thresholds: int) -> np.ndarray:
    """(A, T, D) bool of one class, the detections of all images one after the other."""
    none = np.zeros((thresholds, 0), dtype=bool)
    return np.stack(
        [
            np.concatenate([none if c is None else c[name][:, :most] != 0 for c in by_image], axis=1)
            for by_image in by_area
        ]
    )


def average_precision(matches: CocoMatches, weights: np.ndarray | None = None, area: str = "all") -> np.ndarray:
    """COCO's AP in percent, the mean over IoU thresholds and classes, of weighted images.

    An image of weight 2 counts as two images, one of weight 0 is not there.

    Args:
        matches: of I images.
        weights: (B, I) not negative; None for each image once.
        area: one of `AREAS`.

    Returns:
        (B,), NaN where no object counts.
    """
    weights = np.ones((1, matches.objects.shape[2])) if weights is None else weights.astype(np.float64)
    a = AREAS.index(area)
    total, classes = np.zeros(len(weights)), np.zeros(len(weights))
    for k, image in enumerate(matches.image):
        objects = weights @ matches.objects[a, k]
        is_there = objects > 0
        for found, ignored in zip(matches.found[k][a], matches.ignored[k][a], strict=True):
            counts = ~ignored
            total += _precision(found[counts], image[counts], weights, objects, matches.recalls) * is_there
        classes += is_there * len(matches.found[k][a])
    with np.errstate(invalid="ignore"):
        return 100 * total / classes


def _precision(
    found: np.ndarray, image: np.ndarray, weights: np.ndarray, objects: np.ndarray, recalls: np.ndarray
) -> np.ndarray:
    """(B,) mean over `recalls` of the best precision at that recall or above, for one class and IoU threshold.

    Precision falls between two true positives, so that only those have to be looked at; and what is wrong before each
    of them is a product of matrices.

    Args:
        found: (D,) bool, best score first.
        image: (D,) image of each detection.
        weights: (B, I) of images.
        objects: (B,) weighted number of objects, 0 where the result is of no use.
        recalls: (R,) ascending.
    """
    right = found.nonzero()[0]
    # wrong[p, i]: detections of image i without an object before the p-th true positive.
    wrong = np.zeros((len(right) + 1, weights.shape[1]))
    np.add.at(wrong, (np.searchsorted(right, np.arange(len(found)))[~found], image[~found]), 1)
    wrong = wrong[:-1].cumsum(0)
    true = weights[:, image[right]].cumsum(1)
    false = weights @ wrong.T
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.nan_to_num(true / (true + false))
        recall = np.nan_to_num(true / objects[:, None])
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    reached = np.searchsorted(recalls, recall, side="right")
    return (np.diff(reached, axis=1, prepend=0) * best).sum(1) / len(recalls)
