"""AP of weighted images is what COCO's evaluation says of a data set that has each image so many times."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sparsercnn.evaluation.coco_matches import AREAS, CocoMatches, average_precision

CLASSES = 3


def make_data(images: int, seed: int = 0, digits: int = 1) -> tuple[list[dict], list[dict]]:
    """Annotations of random boxes, and detections near some of them and elsewhere; few digits make scores tie."""
    random = np.random.default_rng(seed)
    truth, found = [], []
    for image in range(images):
        for _ in range(random.integers(0, 6)):
            size = float(np.exp(random.uniform(np.log(10), np.log(200))))
            box = [*random.uniform(0, 200, 2).tolist(), size, size * random.uniform(0.5, 2)]
            category = int(random.integers(1, CLASSES + 1))
            crowd = int(random.random() < 0.1)
            truth.append(
                {"image_id": image, "category_id": category, "bbox": box, "area": box[2] * box[3], "iscrowd": crowd}
            )
            for _ in range(random.integers(0, 3)):
                near = (np.array(box) + random.normal(0, 0.08 * size, 4)).tolist()
                guess = category if random.random() < 0.8 else int(random.integers(1, CLASSES + 1))
                score = round(random.random(), digits)
                found.append({"image_id": image, "category_id": guess, "bbox": near, "score": score})
        for _ in range(random.integers(0, 4)):
            box = random.uniform(5, 150, 4).tolist()
            found.append({"image_id": image, "category_id": 1, "bbox": box, "score": round(random.random(), digits)})
    return truth, found


def evaluate(truth: list[dict], found: list[dict], images: int) -> COCOeval:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": i} for i in range(images)],
            "annotations": [{"id": i + 1, **t} for i, t in enumerate(truth)],
            "categories": [{"id": c + 1} for c in range(CLASSES)],
        }
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


@pytest.fixture(scope="module")
def matches() -> CocoMatches:
    return CocoMatches.of(evaluate(*make_data(30), 30))


@pytest.mark.parametrize("seed", range(3))
def test_equals_coco_on_all_areas(seed):
    evaluation = evaluate(*make_data(30, seed), 30)
    matches = CocoMatches.of(evaluation)
    for area, i in zip(AREAS, (0, 3, 4, 5), strict=True):
        assert average_precision(matches, area=area)[0] == pytest.approx(100 * evaluation.stats[i], abs=1e-9)


def test_weights_are_copies_of_images():
    # Without ties, whose order among copies is not defined.
    truth, found = make_data(30, digits=16)
    matches = CocoMatches.of(evaluate(truth, found, 30))
    weights = np.random.default_rng(1).multinomial(30, np.full(30, 1 / 30), size=4)
    for row, ap in zip(weights, average_precision(matches, weights), strict=True):
        drawn = np.repeat(np.arange(30), row)
        copies = [[{**r, "image_id": new} for new, old in enumerate(drawn) for r in rs if r["image_id"] == old]
                  for rs in (truth, found)]  # fmt: skip
        assert ap == pytest.approx(100 * evaluate(*copies, 30).stats[0], abs=1e-9)


def test_a_class_that_is_not_drawn_does_not_count():
    truth = [{"image_id": i, "category_id": i + 1, "bbox": [0, 0, 50, 50], "area": 2500, "iscrowd": 0} for i in (0, 1)]
    found = [{"image_id": 0, "category_id": 1, "bbox": [0, 0, 50, 50], "score": 0.9}]
    matches = CocoMatches.of(evaluate(truth, found, 3))
    weights = np.array([[1, 1, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    np.testing.assert_allclose(average_precision(matches, weights), [50, 100, 0, np.nan])


def test_comes_back_from_a_file(matches, tmp_path):
    matches.save(tmp_path / "matches.npz")
    again = CocoMatches.load(tmp_path / "matches.npz")
    for area in AREAS:
        assert average_precision(again, area=area) == average_precision(matches, area=area)
