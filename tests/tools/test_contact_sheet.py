"""The contact sheet names and counts the classes of data sets in whatever way their category ids are numbered."""

import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from PIL import Image

from sparsercnn.evaluation.results import RESULTS
from tools import contact_sheet

CATEGORIES = {3: "cat", 17: "dog", 90: "owl"}
BOX = {3: [5, 5, 20, 20], 17: [30, 5, 20, 20], 90: [5, 30, 20, 20]}


@pytest.fixture
def animals(tmp_path):
    """A registered data set of one picture with an object of each class, whose ids have gaps."""
    Image.fromarray(np.zeros((64, 64, 3), dtype=np.uint8)).save(tmp_path / "1.png")
    annotations = [
        {"id": i, "image_id": 7, "category_id": c, "bbox": BOX[c], "area": 400, "iscrowd": 0}
        for i, c in enumerate(CATEGORIES, start=1)
    ]
    content = {
        "images": [{"id": 7, "file_name": "1.png", "height": 64, "width": 64}],
        "annotations": annotations,
        "categories": [{"id": c, "name": name} for c, name in CATEGORIES.items()],
    }
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    register_coco_instances("animals_with_gaps", {}, str(tmp_path / "annotations.json"), str(tmp_path))
    yield "animals_with_gaps"
    DatasetCatalog.remove("animals_with_gaps")
    MetadataCatalog.remove("animals_with_gaps")


def test_category_ids_with_gaps(animals, tmp_path, capsys, monkeypatch):
    # The owl is found, the dog is taken for a cat, the cat is missed.
    found = [(90, BOX[90], 0.9), (3, BOX[17], 0.8)]
    results = [{"image_id": 7, "category_id": c, "bbox": box, "score": score} for c, box, score in found]
    folder = tmp_path / "inference" / animals
    folder.mkdir(parents=True)
    (folder / RESULTS).write_text(json.dumps(results))
    (tmp_path / "config.yaml").write_text(f"DATASETS: {{COCO_JSON: [], TEST: [{animals}]}}")
    labels = []
    draw = contact_sheet.draw_comparison

    def noting(picture, detections, objects, matches, names):
        labels.extend(names[c] for c in detections.pred_classes.tolist())
        return draw(picture, detections, objects, matches, names)

    monkeypatch.setattr(contact_sheet, "draw_comparison", noting)
    assert contact_sheet.main([str(tmp_path), "--confidence-threshold", "0.5"]) == 0
    line = "3 objects, scores over 0.50: 1 found (median score 0.90), 2 missed, 1 wrong boxes"
    assert line in capsys.readouterr().out
    assert labels == ["owl", "cat"]
