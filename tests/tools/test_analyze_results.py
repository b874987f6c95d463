"""tools/analyze_results.py: from the folder of a run to one page that needs nothing else."""

import json
import re

import pytest
import torch

from sparsercnn import load_config
from sparsercnn.data.shapes import prepare_shapes
from tools import analyze_results


@pytest.fixture
def run(tmp_path):
    """A run that evaluated: every object found, those of every second image as another class."""
    prepare_shapes(tmp_path / "data", {"train": 1, "val": 6}, 64, 0, "shapes")
    file = tmp_path / "data" / "annotations" / "instances_val.json"
    truth = json.loads(file.read_text())
    found = [
        {**{key: a[key] for key in ("image_id", "bbox")}, "score": 0.9, "category_id": 1 + a["category_id"] % 3}
        if a["image_id"] % 2
        else {**{key: a[key] for key in ("image_id", "bbox", "category_id")}, "score": 0.8}
        for a in truth["annotations"]
    ]
    name = f"shapes_of_{tmp_path.name}"
    data = [[name, str(file), str(tmp_path / "data" / "val")]]
    cfg = load_config("configs/quickstart.yaml", ["DATASETS.COCO_JSON", data, "DATASETS.TEST", (name,)])
    folder = tmp_path / "output" / "inference" / name
    folder.mkdir(parents=True)
    (tmp_path / "output" / "config.yaml").write_text(cfg.dump())
    (folder / "coco_instances_results.json").write_text(json.dumps(found))
    (folder / "metrics.json").write_text(
        json.dumps({"bbox": {"AP": 30.0, "AP50": 50.0}, "bbox_stage1": {"AP": 12.3, "AP50": None}})
    )
    torch.save({"model": {"init_proposal_boxes.weight": torch.rand(9, 4)}}, tmp_path / "output" / "model_final.pth")
    return tmp_path / "output"


def test_one_page_with_everything(run, capsys):
    assert analyze_results.main([str(run)]) == 0
    out = capsys.readouterr().out
    assert "Cls errors (the place of an object, another class)" in out and str(run / "analysis.html") in out
    page = (run / "analysis.html").read_text()
    headings = re.findall(r"<h2[^>]*>([^<]+)</h2>", page)
    assert headings == [
        *("Accuracy", "Precision and recall", "Errors", "Confusion", "Calibration", "Refinement stages"),
        *("Learned proposals", "Pyramid levels", "Worst images"),
    ]
    assert "<td>stage 1</td><td>12.3</td><td>0.0</td>" in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)


def test_what_is_missing_is_named(run, tmp_path, capsys):
    assert analyze_results.main([str(tmp_path / "nowhere")]) == 2
    assert "config.yaml; give the OUTPUT_DIR of a run" in capsys.readouterr().err
    assert analyze_results.main([str(run), "--dataset", "other"]) == 2
    assert "--dataset is 'other'; choose one of shapes_of_" in capsys.readouterr().err
