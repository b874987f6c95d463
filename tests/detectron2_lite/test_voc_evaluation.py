"""PascalVOCDetectionEvaluator with the metrics of 2007 and 2012."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_pascal_voc
from detectron2.evaluation import PascalVOCDetectionEvaluator
from detectron2.evaluation.pascal_voc_evaluation import voc_ap
from detectron2.structures import Boxes, Instances

# image -> [(class, difficult, corners as VOC counts them)]
OBJECTS = {
    "a": [("cat", 0, (1, 1, 50, 50)), ("dog", 0, (11, 21, 40, 60)), ("cat", 1, (61, 61, 90, 90))],
    "b": [("cat", 0, (1, 1, 80, 80))],
}
CLASSES = ["cat", "dog"]


def xml_of(objects):
    parts = [
        "<object><name>{}</name><pose>Left</pose><truncated>0</truncated><difficult>{}</difficult><bndbox><xmin>{}</xmin>"
        "<ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>".format(name, difficult, *corners)
        for name, difficult, corners in objects
    ]
    return f"<annotation><size><width>100</width><height>100</height></size>{''.join(parts)}</annotation>"


@pytest.fixture(params=[2007, 2012])
def name(tmp_path, request):
    name = "voc_evaluation_test"
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "test.txt").write_text("a\nb\n")
    for image_id, objects in OBJECTS.items():
        (tmp_path / "Annotations" / f"{image_id}.xml").write_text(xml_of(objects))
    register_pascal_voc(name, str(tmp_path), "test", request.param, CLASSES)
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def box_of(corners):
    return [corners[0] - 1, corners[1] - 1, *corners[2:]]


def evaluate(name, outputs):
    """AP of {image: [(class, xyxy, score)]}."""
    evaluator = PascalVOCDetectionEvaluator(name)
    evaluator.reset()
    for image_id, found in outputs.items():
        instances = Instances(
            (100, 100),
            pred_boxes=Boxes(torch.tensor([box for _, box, _ in found], dtype=torch.float32).reshape(-1, 4)),
            scores=torch.tensor([score for _, _, score in found]),
            pred_classes=torch.tensor([c for c, _, _ in found], dtype=torch.int64),
        )
        evaluator.process([{"image_id": image_id}], [{"instances": instances}])
    return evaluator.evaluate()["bbox"]


def perfect(*images):
    return {
        image: [(CLASSES.index(c), box_of(corners), 0.9) for c, difficult, corners in OBJECTS[image] if not difficult]
        for image in images
    }


def test_perfect_detections(name):
    results = evaluate(name, perfect("a", "b"))
    assert list(results) == ["AP", "AP50", "AP75"]
    assert all(value == pytest.approx(100) for value in results.values())


def test_difficult_objects_neither_help_nor_hurt(name):
    outputs = perfect("a", "b")
    outputs["a"].append((0, box_of(OBJECTS["a"][2][2]), 0.95))
    assert evaluate(name, outputs)["AP"] == pytest.approx(100)


def test_duplicates_are_false_positives(name):
    outputs = perfect("a", "b")
    outputs["a"].append((0, box_of(OBJECTS["a"][0][2]), 0.99))
    # cats, best first: right, wrong, right; dogs all found
    last = 2 / 3
    cat = (6 + 5 * last) / 11 if MetadataCatalog.get(name).year == 2007 else 0.5 + 0.5 * last
    assert evaluate(name, outputs)["AP50"] == pytest.approx(100 * (cat + 1) / 2)


def test_missed_objects(name):
    # of the cats one of two is found, the dog too
    cat = 6 / 11 if MetadataCatalog.get(name).year == 2007 else 0.5
    assert evaluate(name, perfect("a"))["AP50"] == pytest.approx(100 * (cat + 1) / 2)


def test_a_loose_box_counts_at_low_thresholds_only(name):
    outputs = perfect("a", "b")
    outputs["a"] = [found for found in outputs["a"] if found[0] == 0] + [(1, [10, 20, 40, 49], 0.9)]  # IoU 29 / 40
    results = evaluate(name, outputs)
    assert results["AP50"] == pytest.approx(100)
    assert results["AP75"] == pytest.approx(50)
    assert results["AP"] == pytest.approx((5 * 100 + 5 * 50) / 10)  # 0.5, 0.55, 0.6, 0.65, 0.7 pass


def test_no_detections(name):
    assert evaluate(name, {"a": [], "b": []})["AP"] == 0


def test_average_precision_of_a_curve():
    recall, precision = np.array([0.25, 0.25, 0.5]), np.array([1.0, 0.5, 0.75])
    assert voc_ap(recall, precision, use_07_metric=True) == pytest.approx((3 * 1 + 3 * 0.75) / 11)
    assert voc_ap(recall, precision, use_07_metric=False) == pytest.approx(0.25 * 1 + 0.25 * 0.75)
