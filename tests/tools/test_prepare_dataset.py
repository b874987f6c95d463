"""tools/prepare_dataset.py: every format gives the same files, the source stays as it is, a mistake has one line."""

import json
import os

import numpy as np
import pytest
import yaml
from PIL import Image

from sparsercnn import load_config
from tests.labeled_copies import WRITERS, make_pictures
from tools import prepare_dataset


def prepare(source, output, *options):
    return prepare_dataset.main([str(source), "--output", str(output), *map(str, options)])


@pytest.fixture(scope="module")
def prepared(copies, tmp_path_factory):
    """{format: output folder}."""
    root = tmp_path_factory.mktemp("prepared")
    for kind, folder in copies.items():
        assert prepare(folder, root / kind) == 0
    return {kind: root / kind for kind in copies}


def read(folder, split):
    return json.loads((folder / f"{split}.json").read_text())


@pytest.mark.parametrize("kind", WRITERS)
def test_all_formats_give_the_same_annotations(prepared, kind):
    for split in ("train", "val"):
        assert read(prepared[kind], split) == read(prepared["coco"], split)


def test_the_annotations_are_those_of_the_source(prepared, copies):
    source = json.loads((copies["coco"] / "labels.json").read_text())
    names = {c["id"]: c["name"] for c in source["categories"]}
    files = {i["id"]: i["file_name"] for i in source["images"]}
    expected = sorted((files[a["image_id"]], names[a["category_id"]], a["bbox"]) for a in source["annotations"])
    found = []
    for split in ("train", "val"):
        content = read(prepared["coco"], split)
        names = {c["id"]: c["name"] for c in content["categories"]}
        files = {i["id"]: i["file_name"] for i in content["images"]}
        found += [(files[a["image_id"]], names[a["category_id"]], a["bbox"]) for a in content["annotations"]]
    assert sorted(found) == expected
    assert len(read(prepared["coco"], "val")["images"]) == 3


def test_the_config_needs_nothing_else_and_names_the_data(prepared):
    folder = prepared["yolo"]
    content = yaml.safe_load((folder / "config.yaml").read_text())
    assert "_BASE_" not in content
    cfg = load_config(folder / "config.yaml", ["MODEL.DEVICE", "cpu"])
    assert cfg.MODEL.SparseRCNN.NUM_CLASSES == 3
    assert cfg.DATASETS.TRAIN == ("yolo_train",) and cfg.DATASETS.TEST == ("yolo_val",)
    name, annotations, images = cfg.DATASETS.COCO_JSON[0]
    assert os.path.isabs(annotations) and os.path.isabs(images)
    assert cfg.OUTPUT_DIR == str(folder / "run")


def test_the_source_is_left_alone(copies, tmp_path):
    def state():
        return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in copies["voc"].rglob("*")}

    before = state()
    assert prepare(copies["voc"], tmp_path / "out") == 0
    assert state() == before


def test_what_is_said(copies, tmp_path, capsys):
    assert prepare(copies["yolo"], tmp_path / "out", "--val", 0.25) == 0
    said = capsys.readouterr().out
    assert "YOLO, 3 classes: circle, rectangle, triangle" in said
    assert "train: 12 pictures, " in said and "val: 4 pictures, " in said
    empties = [int(line.split()[-4]) for line in said.splitlines() if line.endswith("pictures without objects")]
    assert sum(empties) == 1
    for word in ("train_net.py", "--eval-only", "demo.py", "check_dataset.py", "doctor.py", "analyze_results.py"):
        assert word in said


def test_empty_pictures_are_dropped_by_choice(copies, tmp_path, capsys):
    assert prepare(copies["coco"], tmp_path / "out", "--drop-empty") == 0
    assert "are left out of training" in capsys.readouterr().out
    content = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert content["DATALOADER"]["FILTER_EMPTY_ANNOTATIONS"] is True


def test_copies_of_a_picture_stay_on_one_side(tmp_path, capsys):
    """Four pictures, each six times, brighter every time: any other split of them leaks."""
    pictures = tmp_path / "pictures"
    labeled = make_pictures(pictures, 4)
    copied = []
    for name, objects in labeled:
        pixels = np.asarray(Image.open(pictures / name)).astype(int)
        for step in range(6):
            copy = f"{step}_{name}"
            Image.fromarray(np.clip(pixels + 3 * step, 0, 255).astype(np.uint8)).save(pictures / copy)
            copied.append(type(labeled[0])(copy, objects))
        (pictures / name).unlink()
    (tmp_path / "source").mkdir()
    WRITERS["csv"](pictures, copied, tmp_path / "source")
    assert prepare(tmp_path / "source", tmp_path / "out", "--val", 0.3) == 0
    originals = {s: {i["file_name"][2:] for i in read(tmp_path / "out", s)["images"]} for s in ("train", "val")}
    assert len(originals["val"]) == 1 and not originals["val"] & originals["train"]
    assert "20 picture(s) are nearly the same as another one" in capsys.readouterr().out


def table(tmp_path, rows, sizes=((40, 30), (40, 30))):
    source = tmp_path / "source"
    source.mkdir()
    for i, size in enumerate(sizes):
        pixels = np.random.default_rng(i).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(source / f"{i}.png")
    (source / "labels.csv").write_text("\n".join(["file,label,x1,y1,x2,y2", *rows]))
    return source


def test_boxes_are_cut_off_at_the_border_and_that_is_said(tmp_path, capsys):
    source = table(tmp_path, ["0.png,cat,-5,2,11.239,99", "0.png,cat,50,2,60,20", "1.png,cat,1,2,11,12"])
    assert prepare(source, tmp_path / "out", "--val", 0.5) == 0
    said = capsys.readouterr().out
    assert "1 box(es) cut off at the border" in said and "1 box(es) left out, without area or outside" in said
    boxes = [a["bbox"] for split in ("train", "val") for a in read(tmp_path / "out", split)["annotations"]]
    assert sorted(boxes) == [[0, 2, 11.24, 28], [1, 2, 10, 10]]


def test_unreadable_pictures_are_named_and_left_out(tmp_path, capsys):
    rows = [f"{i}.png,cat,1,2,11,12" for i in range(3)]
    source = table(tmp_path, rows, sizes=[(40, 30)] * 3)
    (source / "2.png").write_bytes((source / "2.png").read_bytes()[:200])
    assert prepare(source, tmp_path / "out", "--val", 0.5) == 0
    assert f"1 picture(s) left out: cannot read image {source / '2.png'}" in capsys.readouterr().out


def test_mistakes(copies, tmp_path, capsys):
    for source, output, message in [
        (tmp_path / "gone", tmp_path / "out", "there is no"),
        (copies["voc"], copies["voc"] / "out", "in which nothing is to be changed"),
        (copies["voc"], copies["coco"] / "labels.json" / "out", "cannot be made"),
        (table(tmp_path, ["0.png,cat,1,2,11,12"]), tmp_path / "out", "one picture alone"),
    ]:
        assert prepare(source, output) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and message in error and error.count("\n") == 1
