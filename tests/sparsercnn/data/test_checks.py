"""Mistakes in data sets: each gets one line that names the file and what is wrong."""

import copy
import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from sparsercnn import load_config
from sparsercnn.data import check_datasets, register_config_datasets
from sparsercnn.errors import InputError

GOOD = {
    "images": [{"id": 1, "file_name": "a.png", "height": 30, "width": 40}],
    "categories": [{"id": 3, "name": "cat"}, {"id": 8, "name": "dog"}],
    "annotations": [{"id": 5, "image_id": 1, "category_id": 8, "bbox": [1, 2, 10.5, 20], "area": 210, "iscrowd": 0}],
}


@pytest.fixture
def mine(tmp_path):
    """A config with one small data set, and a function that replaces its annotation file."""
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(tmp_path / "a.png")
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(GOOD))
    name = f"mine_{tmp_path.name}"
    cfg = load_config()
    cfg.MODEL.META_ARCHITECTURE = "SparseRCNN"
    cfg.MODEL.SparseRCNN.NUM_CLASSES = 2
    cfg.DATASETS.COCO_JSON = [[name, str(path), str(tmp_path)]]
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (name,)
    register_config_datasets(cfg)

    def write(content):
        path.write_text(content if isinstance(content, str) else json.dumps(content))

    yield cfg, write
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def changed(section, **fields):
    data = copy.deepcopy(GOOD)
    data[section][0].update(fields)
    return data


def without(section, field):
    data = copy.deepcopy(GOOD)
    del data[section][0][field]
    return data


def test_a_good_file_passes_and_loads(mine):
    cfg, _ = mine
    check_datasets(cfg)
    (image,) = DatasetCatalog.get(cfg.DATASETS.TRAIN[0])
    assert image["annotations"][0]["category_id"] == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("[" * 100000, "is not JSON"),
        ("[]", "holds a list, not an object"),
        ("3", "holds a int, not an object"),
        ({"images": []}, "'annotations' must be a list of objects"),
        ({**GOOD, "images": {"id": 1}}, "'images' must be a list of objects"),
        ({**GOOD, "annotations": [7]}, "'annotations' must be a list of objects"),
        ({**GOOD, "images": [], "annotations": []}, "lists no images"),
        (changed("images", file_name=7), "image 1 has file_name 7; it must be of type str"),
        (changed("images", width="40"), "image 1 has width '40'; it must be of type int"),
        (without("images", "height"), "image 1 has no 'height'"),
        (without("annotations", "id"), "has no 'id'"),
        (without("annotations", "area"), "annotation 5 has no 'area'"),
        (without("annotations", "bbox"), "annotation 5 has bbox None"),
        (changed("annotations", category_id=4), "annotation 5 has category 4, which the file does not list"),
        (changed("annotations", image_id=2), "annotation 5 is of image 2, which the file does not list"),
        (changed("annotations", bbox=[1, 2, 3]), "must be 4 numbers"),
        (changed("annotations", bbox=["1", 2, 3, 4]), "must be 4 numbers"),
        (changed("annotations", bbox=[1, 2, float("nan"), 4]), "must be 4 numbers"),
        (changed("annotations", bbox=[1, 2, 1e30, 4]), "must be 4 numbers"),
        (changed("annotations", bbox=[9, 2, -3, 4]), "negative"),
        ({**GOOD, "annotations": GOOD["annotations"] * 2}, "annotation 5 stands in the file twice"),
        ({**GOOD, "images": GOOD["images"] * 2}, "image 1 stands in the file twice"),
        (changed("images", file_name="b.png"), "1 of 1 images are missing: .*b.png"),
        (changed("images", file_name="sub/a.png"), "no image folder .*sub"),
    ],
)
def test_a_bad_file_is_named(mine, content, message):
    cfg, write = mine
    write(content)
    with pytest.raises(InputError, match=message) as error:
        check_datasets(cfg)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("keep", [0, 60])
def test_an_empty_or_truncated_image_is_named(mine, tmp_path, keep):
    cfg, _ = mine
    picture = tmp_path / "a.png"
    picture.write_bytes(picture.read_bytes()[:keep])
    with pytest.raises(InputError, match="cannot read image .*a.png"):
        check_datasets(cfg)


def test_area_is_needed_only_for_evaluation(mine):
    cfg, write = mine
    write(without("annotations", "area"))
    cfg.DATASETS.TEST = ()
    check_datasets(cfg)


def test_the_number_of_classes_must_be_that_of_the_model(mine):
    cfg, _ = mine
    cfg.MODEL.SparseRCNN.NUM_CLASSES = 80
    with pytest.raises(InputError, match="has 2 categories .cat, dog., but MODEL.SparseRCNN.NUM_CLASSES is 80"):
        check_datasets(cfg)


def test_a_missing_file_names_the_folder_of_data_sets(mine, tmp_path):
    cfg, _ = mine
    (tmp_path / "annotations.json").unlink()
    with pytest.raises(InputError, match="no file .*annotations.json .DETECTRON2_DATASETS is"):
        check_datasets(cfg)


def test_an_unknown_data_set_gets_near_matches(mine):
    cfg, _ = mine
    cfg.DATASETS.TRAIN = ("shapes_trian",)
    with pytest.raises(InputError, match="shapes_trian is not registered; did you mean shapes_train"):
        check_datasets(cfg)


def test_training_data_is_not_needed_to_evaluate(mine):
    cfg, _ = mine
    cfg.DATASETS.TRAIN = ("nowhere",)
    check_datasets(cfg, train=False)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (["name", "file.json"], "must be .name, annotation file, image folder."),
        (["coco_2017_train", "file.json", "images"], "the name coco_2017_train is taken"),
    ],
)
def test_bad_data_set_of_ones_own(entry, message):
    cfg = load_config()
    cfg.DATASETS.COCO_JSON = [entry]
    with pytest.raises(InputError, match=message):
        register_config_datasets(cfg)
