"""Recall of proposals, from evaluator to metrics, and the file of proposals that comes with it."""

import json

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog, load_proposals_into_dataset
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import Boxes, Instances

from sparsercnn.evaluation.proposals import COCOAndProposalEvaluator


@pytest.fixture
def pairs(tmp_path):
    """Two images with a small and a large object, registered as `pairs`."""
    boxes = [[10, 10, 20, 20], [100, 50, 100, 100]]
    annotations = [
        {"id": 2 * i + j, "image_id": i, "category_id": 1, "bbox": b, "area": b[2] * b[3], "iscrowd": 0}
        for i in (1, 2)
        for j, b in enumerate(boxes)
    ]
    images = [{"id": i, "file_name": f"{i}.png", "height": 300, "width": 300} for i in (1, 2)]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "box"}]}
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps(content))
    register_coco_instances("pairs", {}, str(path), str(tmp_path))
    DatasetCatalog.get("pairs")  # which says what class each category is
    yield torch.tensor(boxes, dtype=torch.float32)
    DatasetCatalog.remove("pairs")
    MetadataCatalog.remove("pairs")


def xyxy(boxes):
    return Boxes(torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1))


def proposals(boxes):
    return Instances((300, 300), proposal_boxes=xyxy(boxes), objectness_logits=torch.arange(len(boxes), 0.0, -1))


def test_recall_of_proposals(pairs, tmp_path):
    evaluator = COCOAndProposalEvaluator("pairs", output_dir=str(tmp_path / "out"))
    evaluator.reset()
    # Both objects of the first image, the small one of the second.
    evaluator.process([{"image_id": 1}], [{"proposals": proposals(pairs)}])
    evaluator.process([{"image_id": 2}], [{"proposals": proposals(pairs[:1])}])
    results = evaluator.evaluate()
    assert list(results) == ["box_proposals"]
    recall = results["box_proposals"]
    assert recall["AR@100"] == recall["AR@1000"] == pytest.approx(75)
    assert (recall["ARs@100"], recall["ARl@100"]) == (pytest.approx(100), pytest.approx(50))

    dicts = load_proposals_into_dataset([{"image_id": 1}, {"image_id": 2}], str(tmp_path / "out" / "box_proposals.pkl"))
    np.testing.assert_array_equal(dicts[0]["proposal_boxes"], xyxy(pairs).tensor.numpy())


def test_detections_and_proposals_side_by_side(pairs, tmp_path):
    evaluator = COCOAndProposalEvaluator("pairs", output_dir=str(tmp_path))
    evaluator.reset()
    found = Instances((300, 300), pred_boxes=xyxy(pairs), scores=torch.ones(2), pred_classes=torch.zeros(2, dtype=int))
    outputs = [{"instances": found, "proposals": proposals(pairs)}] * 2
    evaluator.process([{"image_id": 1}, {"image_id": 2}], outputs)
    results = evaluator.evaluate()
    assert results["bbox"]["AP"] == pytest.approx(100)
    assert results["box_proposals"]["AR@100"] == pytest.approx(100)
