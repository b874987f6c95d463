"""The tables of the FPN paper: what each row changes, and one command from training to the printed columns."""

import json
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from sparsercnn.engine import build_model
from tools import fpn_tables

SMALL = Path(__file__).parents[2] / "configs" / "fasterrcnn" / "fpn_paper_shapes.yaml"
OPTIONS = """
MODEL.DEVICE cpu DATASETS.TRAIN ('squares',) DATASETS.TEST ('squares',) SOLVER.IMS_PER_BATCH 2
MODEL.ROI_HEADS.NUM_CLASSES 1 MODEL.RPN.PRE_NMS_TOPK_TRAIN 50 MODEL.RPN.PRE_NMS_TOPK_TEST 50
INPUT.MIN_SIZE_TRAIN (64,) INPUT.MIN_SIZE_TEST 64
""".split()


@pytest.fixture
def squares(tmp_path):
    """Options that name a data set of two pictures with a square each."""
    images, annotations = [], []
    for i in (1, 2):
        pixels = np.random.default_rng(i).integers(0, 80, (64, 64, 3), dtype=np.uint8)
        pixels[8:48, 8:48] = 100 * i
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "height": 64, "width": 64})
        box = {"id": i, "image_id": i, "category_id": 1, "bbox": [8, 8, 40, 40], "area": 1600, "iscrowd": 0}
        annotations.append(box)
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "square"}]}
    (tmp_path / "squares.json").write_text(json.dumps(content))
    yield ["DATASETS.COCO_JSON", str([["squares", str(tmp_path / "squares.json"), str(tmp_path)]])]
    DatasetCatalog.remove("squares")
    MetadataCatalog.remove("squares")


@pytest.mark.slow  # three processes, one after the other
def test_rpn_and_fast_rcnn_on_its_proposals(squares, tmp_path, capsys):
    command = ["--tables", "rpn", "fast", "--rows", "c5", "--train", SMALL, "--iterations", 2]
    command = [*map(str, command), "--output", str(tmp_path / "out")]
    assert fpn_tables.main([*OPTIONS, *squares, *command]) == 0
    printed = capsys.readouterr().out
    assert "| AR^100 | AR^1k | AR_s^1k | AR_m^1k | AR_l^1k |" in printed
    assert "| AP@0.5 | AP | AP_s | AP_m | AP_l |" in printed
    assert printed.count("| c5 |") == 2
    tables = json.loads((tmp_path / "out" / "fpn_tables.json").read_text())["tables"]
    assert 0 <= tables["rpn"]["c5"][0]["AR@1000"] <= 100 and tables["rpn"]["c5"][0]["ARl@1000"] is None


@pytest.mark.parametrize("row", fpn_tables.ROWS)
def test_every_row_builds(row):
    build_model(fpn_tables.row_config(f"faster_{row}", SMALL, OPTIONS))


def test_rows_are_the_ablations_of_the_paper():
    fpn = {row: fpn_tables.row_config(f"rpn_{row}", None, []).MODEL.NECK.FPN for row in fpn_tables.ROWS}
    assert [row for row in fpn if not fpn[row].TOP_DOWN] == ["bottom_up"]
    assert [row for row in fpn if not fpn[row].LATERAL] == ["no_laterals"]
    assert [row for row in fpn if fpn[row].FINEST_ONLY] == ["finest_only"]


def test_cells_are_means_with_the_sample_deviation():
    assert fpn_tables.cell([10.0, 14.0, None]) == "12.0 ± 2.8"
    assert fpn_tables.cell([10.0]) == "10.0" and fpn_tables.cell([None]) == "–"


def test_a_mistake_is_one_line(tmp_path, capsys):
    assert fpn_tables.main(["--train", "nowhere.yaml", "--output", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "error: config file nowhere.yaml does not exist\n"
