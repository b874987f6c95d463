"""Columns of COCO files against detectron2's dicts of them, and against the checks of small files."""

import json
import mmap
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.build import filter_images_with_only_crowd_annotations
from detectron2.data.datasets import load_coco_json, register_coco_instances
from detectron2.data.samplers import RepeatFactorTrainingSampler
from PIL import Image

from sparsercnn import load_config
from sparsercnn.data import check_datasets, coco_dataset
from sparsercnn.data.coco_dataset import CocoDataset, is_large, open_coco_dataset, open_columns
from sparsercnn.data.coco_json import check_coco_json
from sparsercnn.data.coco_reader import read_columns
from sparsercnn.data.training import is_wide, training_dataset
from sparsercnn.engine import Trainer
from sparsercnn.errors import InputError

COCO128 = Path(os.getenv("DETECTRON2_DATASETS", "datasets")) / "coco128" / "annotations" / "instances_all.json"


def make_content(seed=0, images=30, text_ids=False):
    """A file with all that is allowed: ids in disorder, integers among the numbers, crowds, images without objects."""
    rng = np.random.default_rng(seed)
    ids = rng.choice(10**6, images, replace=False).tolist()
    ids = [f"image {i}" for i in ids] if text_ids else ids
    categories = [{"id": i, "name": name} for i, name in ((7, "cat"), (3, "dog"), (90, 'a "quoted}, {" name'))]
    annotations = []
    for number in rng.permutation(5 * images).tolist():
        box = [round(x, 2) for x in rng.uniform(-5, 60, 2).tolist() + rng.uniform(0, 30, 2).tolist()]
        box = [[int(x) for x in box], [0, *box[1:]], box][rng.integers(3)]
        annotation = {"image_id": ids[rng.integers(images // 2)], "id": number, "bbox": box}
        annotation |= {"category_id": int(rng.choice([7, 3, 90])), "area": 4.5, "iscrowd": int(rng.integers(10) == 0)}
        if rng.integers(3) == 0:
            annotation["parts"] = [{"name": "}, {", "at": [{"x": 1}, {"x": 2}]}, {"name": "\\"}]
        annotations.append(annotation)
    names = [
        {"file_name": f"ordner/bild ü {i}.jpg", "height": 40 + i % 30, "width": 60 - i % 30} for i in range(images)
    ]
    return {
        "annotations": annotations,
        "images": [{"id": i, **image} for i, image in zip(ids, names, strict=True)],
        "info": {"annotations": [{}, {}]},
        "categories": categories,
    }


@pytest.fixture
def registered(tmp_path):
    """Register a file in a folder of the test under the name "columns_test"."""

    def register(content, **options):
        path = tmp_path / "truth.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content, **options))
        register_coco_instances("columns_test", {}, str(path), "root")
        return str(path)

    yield register
    DatasetCatalog.remove("columns_test")
    MetadataCatalog.remove("columns_test")


def read(path, piece):
    with open(path, "rb") as file:
        return read_columns(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), path, "digest", piece)


def kinds(dicts):
    """What detectron2 calculates with: integers only where all four are."""
    return [[set(map(type, a["bbox"])) == {int} for a in d["annotations"]] for d in dicts]


def assert_equal(dataset, expected):
    assert list(dataset) == expected and len(dataset) == len(expected)
    assert kinds(dataset) == kinds(expected)
    assert [list(d) for d in dataset] == [list(d) for d in expected]


@pytest.mark.skipif(not COCO128.is_file(), reason="coco128 is not there")
def test_equals_detectron2_on_coco128(registered, tmp_path):
    path = registered(COCO128.read_text())
    dataset = open_coco_dataset("columns_test", "")
    metadata = MetadataCatalog.get("columns_test")
    classes, ids = metadata.thing_classes, metadata.thing_dataset_id_to_contiguous_id
    assert_equal(dataset, load_coco_json(path, "root", "columns_test"))  # which cannot set other metadata
    assert classes == metadata.thing_classes and ids == metadata.thing_dataset_id_to_contiguous_id


@pytest.mark.parametrize("text_ids", [False, True])
@pytest.mark.parametrize(("piece", "options"), [(150, {}), (2000, {"indent": 2}), (1 << 20, {"ensure_ascii": False})])
def test_equals_detectron2_however_the_text_is_cut(registered, piece, options, text_ids):
    path = registered(make_content(text_ids=text_ids), **options)
    columns = read(path, piece)
    expected = load_coco_json(path, "root", "columns_test")
    assert_equal(CocoDataset(columns, "", "root"), expected)
    found, content = columns.content(path), check_coco_json(path, evaluated=True)
    rows = sorted(zip(content.ids, content.files, content.sizes, strict=True))
    content.ids, content.files, content.sizes = map(list, zip(*rows, strict=True))
    assert found == content
    assert columns.about.not_evaluated == ""


def test_keys_that_are_not_there_are_not_invented(registered):
    content = make_content()
    for annotation in content["annotations"][::2]:
        del annotation["iscrowd"], annotation["area"]
    path = registered(content)
    columns = read(path, 1 << 20)
    assert_equal(CocoDataset(columns, "", "root"), load_coco_json(path, "root", "columns_test"))
    assert str(content["annotations"][0]["id"]) in columns.about.not_evaluated


def test_images_without_objects_are_left_out_as_detectron2_does(registered):
    content = make_content()
    for annotation in content["annotations"]:
        annotation["iscrowd"] |= int(annotation["image_id"] in [image["id"] for image in content["images"][:5]])
    path = registered(content)
    dataset = CocoDataset(read(path, 1 << 20), "", "root")
    expected = filter_images_with_only_crowd_annotations(load_coco_json(path, "root", "columns_test"))
    assert 0 < len(expected) < len(dataset)
    dataset = dataset.with_objects()
    assert_equal(dataset, expected)
    assert dataset.is_wide().tolist() == [d["width"] > d["height"] for d in expected]
    counts = np.bincount([a["category_id"] for d in expected for a in d["annotations"] if not a["iscrowd"]])
    assert dataset.class_counts().tolist() == counts.tolist()


WRONG = {
    "bbox of three": lambda c: c["annotations"][40].update(bbox=[1, 2, 3]),
    "bbox with text": lambda c: c["annotations"][40].update(bbox=[1, 2, 3, "4"]),
    "negative width": lambda c: c["annotations"][40].update(bbox=[1, 2, -3, 4]),
    "huge box": lambda c: c["annotations"][40].update(bbox=[1, 2, 3, 10**400]),
    "no box": lambda c: c["annotations"][40].pop("bbox"),
    "unknown image": lambda c: c["annotations"][40].update(image_id=-1),
    "image id of another type": lambda c: c["annotations"][40].update(image_id=str(c["images"][0]["id"])),
    "unknown category": lambda c: c["annotations"][40].update(category_id=1),
    "huge id": lambda c: c["annotations"][40].update(id=10**30),
    "iscrowd 2": lambda c: c["annotations"][40].update(iscrowd=2),
    "huge iscrowd": lambda c: c["annotations"][40].update(iscrowd=10**30),
    "ignore": lambda c: c["annotations"][40].update(ignore=1),
    "no id": lambda c: c["annotations"][40].pop("id"),
    "image without size": lambda c: c["images"][20].pop("height"),
    "image without width": lambda c: c["images"][20].update(width=0),
    "image with mixed id": lambda c: c["images"][20].update(id="7"),
    "image with huge id": lambda c: c["images"][20].update(id=2**60),
    "category without name": lambda c: c["categories"][1].pop("name"),
    "no images": lambda c: c.update(images=[]),
    "no categories": lambda c: c.update(categories=[], annotations=[]),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_mistake_is_named_as_in_small_files(registered, mistake):
    content = make_content()
    WRONG[mistake](content)
    path = registered(content)
    with pytest.raises(InputError) as expected:
        check_coco_json(path)
    with pytest.raises(InputError) as found:
        read(path, 500)
    assert str(found.value) == str(expected.value)


@pytest.mark.parametrize("kind", ["images", "annotations"])
def test_ids_that_repeat(registered, kind):
    content = make_content()
    content[kind][20]["id"] = content[kind][3]["id"]
    path = registered(content)
    with pytest.raises(InputError, match=f"{kind[:-1]} {content[kind][3]['id']} stands in the file twice"):
        read(path, 500)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"images": [], "annotations": []}', "categories"),
        ('{"images": {}, "annotations": [], "categories": [{"id": 1, "name": "a"}]}', "lists of objects"),
        ('{"images": [1, 2], "annotations": [], "categories": [{"id": 1, "name": "a"}]}', "lists of objects"),
        ("[]", "COCO format"),
        ('{"images": [', "not JSON"),
        (json.dumps(make_content())[:-500], "not JSON"),
        (json.dumps(make_content()).replace('"bbox": [', '"bbox": [NaN, ', 1), "not JSON"),
    ],
)
def test_what_is_no_coco_file(registered, text, words):
    path = registered(text)
    with pytest.raises(InputError, match=words) as raised:
        read(path, 500)
    assert path in str(raised.value) and "\n" not in str(raised.value)


def test_columns_are_made_once_for_each_content_of_the_file(registered, tmp_path):
    path = registered(make_content(seed=1))
    (tmp_path / "truth.json.columns.123.partial").mkdir()  # of a process that was killed
    (tmp_path / "truth.json.columns").mkdir()
    first = open_coco_dataset("columns_test", "")
    made = os.stat(first.folder)
    assert open_coco_dataset("columns_test", "").folder == first.folder and os.stat(first.folder) == made
    expected = list(first)
    Path(path).write_text(json.dumps(make_content(seed=2)))
    columns, folder = open_columns(path, "")
    assert folder == first.folder and list(CocoDataset(columns, folder, "root")) != expected
    assert list(first) == expected  # what is mapped stays
    assert sorted(os.listdir(tmp_path)) == ["truth.json", "truth.json.columns"]


def test_damaged_columns_are_made_again(registered):
    path = registered(make_content())
    columns, folder = open_columns(path, "")
    expected = list(CocoDataset(columns, folder, "root"))
    boxes = Path(folder, "boxes.npy")
    boxes.write_bytes(boxes.read_bytes()[:-8])
    assert list(CocoDataset(*open_columns(path, ""), "root")) == expected


def test_a_folder_that_cannot_be_written_to_stays_as_it_is(registered, tmp_path, monkeypatch):
    path = registered(make_content())
    monkeypatch.setattr(os, "access", lambda folder, mode: False)
    _, folder = open_columns(path, str(tmp_path / "output"))
    assert folder == str(tmp_path / "output" / "truth.json.columns")


def test_another_process_maps_the_same_files(registered):
    path = registered(make_content(images=2000))
    dataset = CocoDataset(*open_columns(path, ""), "root").with_objects()
    sent = pickle.dumps(dataset)
    assert len(sent) < 8 * len(dataset) + 2000
    assert list(pickle.loads(sent)) == list(dataset)


def test_test_sets_without_annotations(registered):
    content = make_content()
    del content["annotations"]
    path = registered(content)
    assert_equal(CocoDataset(read(path, 500), "", "root"), load_coco_json(path, "root", "columns_test"))


@pytest.fixture
def two_sets(tmp_path, monkeypatch):
    """A config with two data sets and their images; function that makes the first one count as large."""
    entries = []
    for i, name in enumerate(("first", "second")):
        folder = tmp_path / name
        folder.mkdir()
        content = make_content(seed=i)
        for image in content["images"]:
            path = folder / image["file_name"]
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (image["width"], image["height"])).save(path)
        if name == "first":
            content["info"]["padding"] = "x" * 20000
        (folder / "truth.json").write_text(json.dumps(content))
        entries.append([f"columns_{name}", str(folder / "truth.json"), str(folder)])
    names = tuple(entry[0] for entry in entries)
    options = ["DATASETS.COCO_JSON", entries, "DATASETS.TRAIN", names, "DATASETS.TEST", names[:1]]
    options += ["MODEL.SparseRCNN.NUM_CLASSES", 3, "MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path)]
    yield load_config(options=options), lambda: monkeypatch.setattr(coco_dataset, "LARGE", 30000)
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.mark.parametrize("filter_empty", [True, False])
def test_training_sees_the_same_data_from_large_files(two_sets, filter_empty):
    cfg, make_large = two_sets
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = filter_empty
    check_datasets(cfg)
    small = training_dataset(cfg)
    make_large()
    check_datasets(cfg)
    large = training_dataset(cfg)
    assert list(large) == list(small) and is_wide(large) == is_wide(small)
    assert [isinstance(part, CocoDataset) for part in large.datasets] == [True, False]
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency
    assert factors(large, 0.9).tolist() == factors(list(small), 0.9).tolist()


def test_evaluation_sees_the_same_data_from_large_files(two_sets):
    cfg, make_large = two_sets
    small = list(Trainer.build_test_loader(cfg, "columns_first"))
    make_large()
    large = list(Trainer.build_test_loader(cfg, "columns_first"))
    assert len(large) == 30
    for (ours,), (theirs,) in zip(large, small, strict=True):
        assert torch.equal(ours.pop("image"), theirs.pop("image")) and ours == theirs


def test_a_large_file_that_cannot_be_evaluated_is_refused_for_evaluation_alone(two_sets):
    cfg, make_large = two_sets
    make_large()
    path = Path(cfg.DATASETS.COCO_JSON[0][1])
    content = json.loads(path.read_text())
    del content["annotations"][7]["area"]
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"annotation {content['annotations'][7]['id']} lacks an 'area'"):
        check_datasets(cfg)
    cfg.DATASETS.TEST = ()
    check_datasets(cfg)


def test_only_large_coco_files_are_read_into_columns(registered, monkeypatch, tmp_path):
    registered(make_content())
    assert not is_large("columns_test")
    monkeypatch.setattr(coco_dataset, "LARGE", 1000)
    assert is_large("columns_test")
    function = DatasetCatalog.pop("columns_test")
    DatasetCatalog.register("columns_test", lambda: [{**d, "extra": 1} for d in function()])
    assert not is_large("columns_test")
