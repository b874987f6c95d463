"""Numbers of the analysis are pycocotools's; planted errors are found as what they are."""

import contextlib
import io

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, BoxMode, Instances
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sparsercnn.errors import InputError
from sparsercnn.evaluation.analysis import _as_coco, analyze
from sparsercnn.evaluation.results import ImageResult

NAMES = ["a", "b", "c"]
SIZE = (200, 300)


def result(objects, detections):
    """An image; objects (x0, y0, x1, y1, class), detections (x0, y0, x1, y1, score, class)."""
    record = {
        "annotations": [{"bbox": list(o[:4]), "bbox_mode": BoxMode.XYXY_ABS, "category_id": int(o[4])} for o in objects]
    }
    given = torch.tensor(objects, dtype=torch.float32).reshape(-1, 5)
    found = torch.tensor(detections, dtype=torch.float32).reshape(-1, 6)
    truth = Instances(SIZE, gt_boxes=Boxes(given[:, :4]), gt_classes=given[:, 4].long())
    detected = Instances(SIZE, pred_boxes=Boxes(found[:, :4]), scores=found[:, 4], pred_classes=found[:, 5].long())
    return ImageResult(record, detected, truth, truth[:0])


def noisy_results(images=12, seed=0):
    """Objects of all sizes, most of them found, some twice, some as another class, and boxes on nothing."""
    rng = np.random.default_rng(seed)
    results = []
    for _ in range(images):
        corners = rng.uniform(0, (150, 90), (6, 2))
        boxes = np.concatenate([corners, corners + rng.uniform(5, 110, (6, 2))], axis=1)
        classes = rng.integers(3, size=6)
        found = [
            (*(box + rng.normal(0, 6, 4)), rng.uniform(), c if rng.random() < 0.8 else rng.integers(3))
            for box, c in zip(boxes, classes, strict=True)
            for _ in range(rng.integers(3))
        ]
        results.append(result([(*box, c) for box, c in zip(boxes, classes, strict=True)], found))
    return results


def test_numbers_are_those_of_pycocotools():
    results = noisy_results()
    analysis = analyze(results, NAMES, replicates=50)
    truth, found = _as_coco(results, NAMES)
    with contextlib.redirect_stdout(io.StringIO()):
        given = COCO()
        given.dataset = truth
        given.createIndex()
        expected = COCOeval(given, given.loadRes(found), "bbox")
        expected.evaluate()
        expected.accumulate()
        expected.summarize()
    names = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
    assert [analysis.metrics[name] for name in names] == pytest.approx(expected.stats.tolist(), abs=1e-9)
    np.testing.assert_allclose(analysis.precision, expected.eval["precision"][:, :, :, 0, 2], atol=1e-9)
    assert analysis.by_area["all"].value == pytest.approx(100 * expected.stats[0])
    assert analysis.by_area["small"].value == pytest.approx(100 * expected.stats[3])
    for k, name in enumerate(NAMES):
        ap = expected.eval["precision"][:, :, k, 0, 2].mean()
        assert analysis.by_class[name].value == pytest.approx(100 * ap)


def test_intervals_lie_around_the_value_and_shrink_with_more_images():
    few, many = (analyze(noisy_results(n), NAMES, replicates=200).by_area["all"] for n in (8, 60))
    assert few.low < few.value < few.high and many.low < many.value < many.high
    assert many.high - many.low < few.high - few.low


def test_errors_are_named_as_what_they_are():
    box = (10, 10, 60, 60)
    right = (*box, 0.9, 0)
    planted = {
        "Dupe": [right, (*box, 0.5, 0)],
        "Bkg": [right, (200, 100, 250, 150, 0.95, 0)],
        "Cls": [(*box, 0.9, 1)],
        "Loc": [(10, 10, 60, 28, 0.9, 0)],
    }
    for kind, detections in planted.items():
        others = [result([(100, 100, 150, 150, c)], [(100, 100, 150, 150, 0.7, c)]) for c in range(3)]
        errors = analyze([result([(*box, 0)], detections), *others], NAMES, replicates=10).errors
        assert {name for name, (_, count) in errors.items() if count} - {"Miss"} == {kind}, kind
    missed = analyze([result([(*box, 0)], []), *others], NAMES, replicates=10).errors
    assert missed["Miss"][1] == 1 and missed["Miss"][0] > 0


def test_confusion_and_calibration():
    box = (10, 10, 60, 60)
    results = [result([(*box, 0)], [(*box, 0.8, 0)]) for _ in range(3)] + [result([(*box, 0)], [(*box, 0.8, 1)])]
    analysis = analyze(results, NAMES, replicates=10)
    assert analysis.threshold < 0.8
    assert analysis.confusion[0].tolist() == [3, 1, 0, 0]
    ((score, share, count),) = [row for row in analysis.calibration if row[2]]
    assert (score, share, count) == (pytest.approx(0.8), pytest.approx(0.75), 4)
    assert analysis.calibration_error == pytest.approx(0.05)


def test_a_model_that_finds_nothing():
    with pytest.raises(InputError, match="found nothing at all"):
        analyze([result([(10, 10, 20, 20, 0)], [])], NAMES)
