"""Recall of proposals, by hand and as official detectron2 measures it."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.build import load_proposals_into_dataset
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator
from detectron2.evaluation.coco_evaluation import _evaluate_box_proposals
from detectron2.structures import Boxes, Instances
from pycocotools.coco import COCO

GOLDEN = Path(__file__).parents[1] / "golden"
ANNOTATIONS = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"), "coco128", "annotations", "instances_val.json")

# (image id, xywh, crowd): a small, a medium and a large object, and a crowd.
OBJECTS = [(1, [10, 10, 20, 20], 0), (1, [100, 50, 50, 50], 0), (2, [0, 0, 100, 100], 0), (2, [0, 0, 150, 150], 1)]


@pytest.fixture
def annotations(tmp_path):
    path = tmp_path / "instances.json"
    objects = [
        {"id": i, "image_id": image, "category_id": 1, "bbox": box, "area": box[2] * box[3], "iscrowd": crowd}
        for i, (image, box, crowd) in enumerate(OBJECTS, start=1)
    ]
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 200, "height": 200} for i in (1, 2, 3)]
    path.write_text(json.dumps({"images": images, "annotations": objects, "categories": [{"id": 1, "name": "cat"}]}))
    return path


def proposed(image_id, *boxes, scores=None):
    """Proposals in xyxy, best first."""
    scores = torch.arange(len(boxes), 0, -1.0) if scores is None else torch.tensor(scores)
    tensor = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    proposals = Instances((200, 200), proposal_boxes=Boxes(tensor), objectness_logits=scores)
    return {"image_id": image_id, "proposals": proposals}


SMALL, MEDIUM, LARGE = [10, 10, 30, 30], [100, 50, 150, 100], [0, 0, 100, 100]


def recall(annotations, predictions, **options):
    return _evaluate_box_proposals(predictions, COCO(str(annotations)), **options)


def test_a_loose_box_is_recalled_up_to_its_overlap(annotations):
    loose = [100, 50, 150, 87]  # IoU 0.74 with the medium object: five thresholds of ten
    stats = recall(annotations, [proposed(1, SMALL, loose), proposed(2, LARGE)])
    assert stats["num_pos"] == 3
    assert stats["gt_overlaps"].tolist() == pytest.approx([0.74, 1, 1])
    assert stats["recalls"].tolist() == pytest.approx([1] * 5 + [2 / 3] * 5)
    assert stats["ar"].item() == pytest.approx(5 / 6)
    assert stats["thresholds"].tolist() == pytest.approx(np.arange(10) * 0.05 + 0.5)
    half = recall(annotations, [proposed(1, SMALL, loose), proposed(2, LARGE)], thresholds=torch.tensor([0.8]))
    assert half["ar"].item() == pytest.approx(2 / 3)


@pytest.mark.parametrize("area, number", [("all", 3), ("small", 1), ("medium", 1), ("large", 1), ("512-inf", 0)])
def test_objects_of_one_size(annotations, area, number):
    stats = recall(annotations, [proposed(1, SMALL), proposed(2, LARGE)], area=area)
    assert stats["num_pos"] == number
    expected = {"all": 2 / 3, "small": 1, "medium": 0, "large": 1}.get(area, float("nan"))
    assert stats["ar"].item() == pytest.approx(expected, nan_ok=True)
    with pytest.raises(AssertionError, match="Unknown area range: huge"):
        recall(annotations, [], area="huge")


def test_best_proposals_first_up_to_a_limit(annotations):
    predictions = [proposed(1, SMALL, MEDIUM, [0, 0, 5, 5], scores=[1.0, 3.0, 2.0])]
    assert [recall(annotations, predictions, limit=k)["ar"].item() for k in (1, 2, 3, None)] == [0.5, 0.5, 1, 1]


def test_one_proposal_covers_one_object(annotations):
    """The best pair comes first, even where another choice would cover more in all."""
    content = json.loads(annotations.read_text())
    content["annotations"][1]["bbox"] = [20, 10, 20, 20]
    annotations.write_text(json.dumps(content))
    # IoU with the small object and with the one that overlaps it: 2 / 3 and 7 / 13; 4 / 7 and 2 / 9.
    between, tall = [14, 10, 34, 30], [10, 10, 30, 45]
    stats = recall(annotations, [proposed(1, between), proposed(2, LARGE)])
    assert stats["gt_overlaps"].tolist() == pytest.approx([0, 2 / 3, 1])
    stats = recall(annotations, [proposed(1, between, tall), proposed(2, LARGE)])
    assert stats["gt_overlaps"].tolist() == pytest.approx([2 / 9, 2 / 3, 1])


def test_images_without_proposals_or_objects_do_not_count(annotations):
    stats = recall(annotations, [proposed(1), proposed(2, LARGE), proposed(3, LARGE)])
    assert stats["num_pos"] == 1 and stats["ar"] == 1


@pytest.fixture
def name(annotations):
    name = "proposal_recall_test"
    register_coco_instances(name, {}, str(annotations), "root")
    DatasetCatalog.get(name)
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_evaluator_measures_and_writes_proposals(name, tmp_path):
    evaluator = COCOEvaluator(name, output_dir=str(tmp_path))
    evaluator.reset()
    for prediction in (proposed(1, SMALL, MEDIUM), proposed(2)):
        evaluator.process([{"image_id": prediction.pop("image_id")}], [prediction])
    results = evaluator.evaluate()
    assert list(results) == ["box_proposals"]
    values = results["box_proposals"]
    assert list(values) == [f"AR{size}@{limit}" for limit in (100, 1000) for size in ("", "s", "m", "l")]
    assert values["AR@100"] == pytest.approx(100) and values["ARl@100"] != values["ARl@100"]  # no large one counts

    with open(tmp_path / "box_proposals.pkl", "rb") as file:
        assert set(pickle.load(file)) == {"boxes", "objectness_logits", "ids", "bbox_mode"}
    (record,) = load_proposals_into_dataset([{"image_id": 1}], str(tmp_path / "box_proposals.pkl"))
    assert record["proposal_boxes"].tolist() == [SMALL, MEDIUM]


def test_detections_and_proposals_together(name):
    boxes = Boxes(torch.tensor([SMALL, LARGE]).float())
    evaluator = COCOEvaluator(name)
    evaluator.reset()
    for i, (image_id, box) in enumerate(((1, SMALL), (2, LARGE))):
        detections = Instances(
            (200, 200), pred_boxes=boxes[i], scores=torch.ones(1), pred_classes=torch.zeros(1, dtype=torch.int64)
        )
        output = {"instances": detections, "proposals": proposed(image_id, box)["proposals"]}
        evaluator.process([{"image_id": image_id}], [output])
    results = evaluator.evaluate()
    assert results["box_proposals"]["ARs@1000"] == pytest.approx(100)
    assert results["bbox"]["APs"] == pytest.approx(100)


@pytest.mark.skipif(not ANNOTATIONS.is_file(), reason="no coco128 under DETECTRON2_DATASETS")
def test_recalls_of_official_detectron2():
    name = "proposal_recall_golden"
    register_coco_instances(name, {}, str(ANNOTATIONS), "root")
    evaluator = COCOEvaluator(name)
    evaluator.reset()
    arrays = np.load(GOLDEN / "proposal_recall.npz")
    for image_id in sorted({int(key.split("/")[0]) for key in arrays}):
        boxes, logits = arrays[f"{image_id}/boxes"], torch.from_numpy(arrays[f"{image_id}/logits"])
        proposals = Instances((1, 1), proposal_boxes=Boxes(torch.from_numpy(boxes)), objectness_logits=logits)
        evaluator.process([{"image_id": image_id}], [{"proposals": proposals}])
    try:
        expected = json.loads((GOLDEN / "proposal_recall.json").read_text())
        assert evaluator.evaluate()["box_proposals"] == pytest.approx(expected, abs=1e-6, rel=0)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
