"""tools/check_dataset.py names what was planted, and says nothing of a data set that is right."""

import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from tests.tiny_run import QUICKSTART, TINY
from tools import check_dataset

SIDE = 64


def picture(seed):
    coarse = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


@pytest.fixture
def checked(tmp_path, capsys):
    """A function that writes two data sets of pictures and boxes, checks them, and gives status, text and JSON."""
    names = []

    def check(train, val, *options, pictures=None, categories=("cat", "dog"), results=()):
        (tmp_path / "pictures").mkdir()
        for name in {file for part in (train, val) for file in part}:
            (pictures or {}).get(name, picture(len(name) + ord(name[0]))).save(tmp_path / "pictures" / name)
        entries = []
        for split, part in (("train", train), ("val", val)):
            images = [{"id": i, "file_name": f, "width": SIDE, "height": SIDE} for i, f in enumerate(part, 1)]
            boxes = [(i, *row) for i, rows in enumerate(part.values(), 1) for row in rows]
            annotations = [
                {"id": k, "image_id": i, "category_id": c + 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
                for k, (i, c, box) in enumerate(boxes, 1)
            ]
            kinds = [{"id": i, "name": name} for i, name in enumerate(categories, 1)]
            file = tmp_path / f"{split}.json"
            file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": kinds}))
            names.append(f"{tmp_path.name}_{split}")
            entries.append([names[-1], str(file), str(tmp_path / "pictures")])
        output = tmp_path / "output"
        folder = output / "inference" / names[1]
        folder.mkdir(parents=True)
        if results:
            (folder / "coco_instances_results.json").write_text(json.dumps(results))
        opts = [*TINY, "DATASETS.COCO_JSON", str(entries), "DATASETS.TRAIN", str((names[0],))]
        opts += ["DATASETS.TEST", str((names[1],)), "OUTPUT_DIR", str(output), *map(str, options)]
        status = check_dataset.main(["--config-file", QUICKSTART, *opts])
        said = capsys.readouterr()
        file = output / "check" / "check.json"
        return status, said.out + said.err, json.loads(file.read_text()) if file.is_file() else None

    yield check
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


GOOD = [(0, [4, 4, 20, 20]), (1, [30, 30, 16, 24])]


def test_a_good_data_set(checked, tmp_path):
    status, said, content = checked({"a.png": GOOD, "b.png": GOOD, "c.png": []}, {"d.png": GOOD})
    assert status == 0 and "Nothing is wrong" in said
    train, val = content["datasets"].values()
    assert train["objects"] == {"cat": 2, "dog": 2} and train["images_without_objects"] == 1
    assert sum(val["levels"].values()) == 2 and content["near_duplicates"] == []
    page = (tmp_path / "output" / "check" / "check.html").read_text()
    assert page.count("data:image/png;base64,") >= 6 and "http" not in page


def test_what_is_planted_is_named(checked):
    train = {
        "a.png": [*GOOD, (0, [70, 4, 10, 10]), (0, [4, 4, 0, 10])],
        "b.png": [*GOOD, (1, [50, 50, 40, 10]), (0, [4, 4, 20, 20])],
        "crowd.png": [(0, [i, i, 9, 9]) for i in range(0, 45, 5)],
    }
    status, said, content = checked(
        train, {"copy.png": GOOD[:1]}, pictures={x: picture(7) for x in ("b.png", "copy.png")}
    )
    assert status == 1
    for words in (
        "1 × box outside of its image",
        "1 × box without area",
        "1 × box that overhangs its image",
        "1 × object labeled twice",
        "_val: no example of dog",
        "LEAK: ",
        "1 image(s) show more objects than MODEL.SparseRCNN.NUM_PROPOSALS 8, up to 9",
    ):
        assert words in said
    assert len(content["near_duplicates"]) == 1


def test_unreadable_and_wrongly_sized_images(checked):
    status, said, _ = checked(
        {"a.png": GOOD, "b.png": GOOD}, {"d.png": GOOD}, pictures={"b.png": Image.new("L", (9, 9))}
    )
    assert status == 1 and "1 × unreadable image" in said and "has 9×9 pixels, annotated as 64×64" in said


def test_classes_that_differ_in_case_only(checked):
    status, said, _ = checked({"a.png": GOOD}, {"d.png": GOOD}, categories=("RBC", "rbc"))
    assert status == 1 and "RBC and rbc differ in upper and lower case only" in said


def test_label_errors_are_ranked_from_the_results_of_an_evaluation(checked):
    found = [(1, [4, 4, 20, 20], 0.9), (2, [30, 30, 16, 24], 0.9), (1, [4, 40, 16, 16], 0.8)]
    results = [{"image_id": 1, "category_id": c, "bbox": box, "score": score} for c, box, score in found]
    _, said, content = checked({"a.png": GOOD}, {"d.png": [(1, [4, 4, 20, 20]), GOOD[1]]}, results=results)
    errors = list(content["datasets"].values())[1]["label_errors"]
    assert [(e["kind"], e["label"], e["found"]) for e in errors] == [
        ("other class", "dog", "cat"),
        ("overlooked", None, "cat"),
    ]
    assert "2 labels that the model disagrees with" in said and "labeled dog, looks like cat" in said


def test_malformed_annotations_are_one_line(checked):
    status, said, _ = checked({"a.png": [(5, [4, 4, 20, 20])]}, {"d.png": GOOD})
    assert status == 2 and said.splitlines()[-1].startswith("error: ") and "category 6" in said
