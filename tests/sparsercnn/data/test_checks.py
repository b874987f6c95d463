"""Mistakes in data sets: each gets one line that names the file and what is wrong."""

import copy
import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
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
        if not isinstance(content, bytes):
            content = (content if isinstance(content, str) else json.dumps(content)).encode()
        path.write_bytes(content)

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
        ("[" * 100000, "nested too deeply"),
        ("[]", "holds a list, not an object"),
        ("3", "holds a int, not an object"),
        ({"images": []}, "lists no images"),
        ({**GOOD, "annotations": None}, "'annotations' must be a list of objects"),
        ({**GOOD, "categories": []}, "lists no categories"),
        ({**GOOD, "images": {"id": 1}}, "'images' must be a list of objects"),
        ({**GOOD, "annotations": [7]}, "'annotations' must be a list of objects"),
        ({**GOOD, "images": [], "annotations": []}, "lists no images"),
        (changed("images", file_name=7), "image 1 has file_name 7; it must be of type str"),
        (changed("images", width="40"), "image 1 has width '40'; it must be of type int"),
        (without("images", "height"), "image 1 has no 'height'"),
        (without("annotations", "id"), "annotation number 0 from 0 has no 'id'"),
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
        (b"\xef\xbb\xbf{}", "is not JSON: Unexpected UTF-8 BOM"),
        (json.dumps(GOOD).encode("utf-16"), "is not JSON in UTF-8"),
        (json.dumps(GOOD).replace("40", "4" * 5000), "is not JSON"),
        (json.dumps(GOOD).replace('"width"', '"height"'), "object with id 1 has the key 'height' twice"),
        (json.dumps(GOOD)[:-1] + ', "images": []}', "has the key 'images' twice"),
        (changed("images", id=True), "image True has id True; it must be of type int or str"),
        (changed("images", id=1.0), "image 1.0 has id 1.0"),
        (changed("images", width=0), "image 1 has 0×30 pixels"),
        (changed("images", height=-30), "image 1 has 40×-30 pixels"),
        (changed("images", height=10**400), "image 1 has 40×10000.*0000 pixels"),
        (changed("images", width=30, height=40), "annotations.json says that .*a.png has 30×40 pixels, but it has 40×"),
        (changed("images", file_name="../a.png"), "file of image 1, '../a.png', leads out of the folder"),
        (changed("images", file_name="a.png\0"), "a name that no file can have"),
        (
            {**GOOD, "images": [*GOOD["images"], {**GOOD["images"][0], "id": "1"}]},
            "image '1' has an id of another type",
        ),
        (changed("annotations", id=2**60), "annotation 1152921504606846976 has an id beyond 9007199254740992"),
        (changed("annotations", id=None), "annotation None has id None"),
        (changed("annotations", image_id=[1]), "annotation 5 has image_id .1.; it must be of type int or str"),
        (changed("annotations", category_id="8"), "annotation 5 has category_id '8'; it must be of type int"),
        (changed("annotations", bbox=[1, 2, 10**400, 4]), "must be 4 numbers"),
        (changed("annotations", bbox=[True, 2, 3, 4]), "must be 4 numbers"),
        (changed("annotations", bbox="x" * 10**6), "annotation 5 has bbox 'xxx.*xxx'; it must be 4 numbers"),
        (changed("annotations", area=float("nan")), "annotation 5 has area nan; it must be 0 to"),
        (changed("annotations", area=-1), "annotation 5 has area -1"),
        (changed("annotations", area="210"), "annotation 5 has area '210'"),
        (changed("annotations", iscrowd=10**30), "annotation 5 has iscrowd 10000.*; it must be 0 or 1"),
        (changed("annotations", iscrowd=0.0), "annotation 5 has iscrowd 0.0; it must be 0 or 1"),
        (without("annotations", "iscrowd"), "annotation 5 has no 'iscrowd'"),
        (changed("annotations", ignore=1), "annotation 5 has ignore 1, which detectron2 does not know"),
        (changed("annotations", ignore="0"), "annotation 5 has ignore '0'"),
        (changed("annotations", segmentation="abc"), "annotation 5 has a 'segmentation'"),
        (changed("annotations", segmentation=[1, 2, 3]), "annotation 5 has a 'segmentation'"),
        (changed("annotations", keypoints="abc"), "annotation 5 has 'keypoints'"),
        (changed("images", file_name="b.png"), "1 of 1 images are missing: .*b.png"),
        (changed("images", file_name="sub/a.png"), "image 1 lies in a folder that is not there, .*sub"),
    ],
)
def test_a_bad_file_is_named(mine, content, message):
    cfg, write = mine
    write(content)
    with pytest.raises(InputError, match=message) as error:
        check_datasets(cfg)
    assert str(error.value).isprintable() and len(str(error.value)) < 500


HARMLESS = {
    "crowds as booleans": changed("annotations", iscrowd=False),
    "ignore that says nothing": changed("annotations", ignore=0),
    "ids from zero": changed("annotations", id=0),
    "negative ids": changed("annotations", id=-5),
    "number where nobody looks": changed("annotations", score=float("nan")),
    "no polygons": changed("annotations", segmentation=[], keypoints=None),
    "a mask": changed("annotations", segmentation={"size": [30, 40], "counts": "abc"}),
    "integers": changed("annotations", bbox=[1, 2, 10, 20]),
    "a box beyond the edge": changed("annotations", bbox=[-5, -5, 100, 100]),
    "strange words": changed("images", license={"a": [None]}),
}


@pytest.mark.parametrize("kind", HARMLESS)
def test_what_does_no_harm_passes_and_loads(mine, kind):
    cfg, write = mine
    write(HARMLESS[kind])
    check_datasets(cfg)
    (image,) = DatasetCatalog.get(cfg.DATASETS.TRAIN[0])
    assert image["annotations"][0]["bbox"] == HARMLESS[kind]["annotations"][0]["bbox"]


def with_boxes(*boxes, **fields):
    objects = [{**GOOD["annotations"][0], "id": i, "bbox": box, **fields} for i, box in enumerate(boxes)]
    return {**GOOD, "annotations": objects}


def test_what_is_left_out_of_training_is_said(mine, caplog):
    cfg, write = mine
    write(with_boxes([1, 2, 3, 4], [1, 2, 0, 4], [1, 2, 3, 0], [40, 2, 3, 4], [1, -9, 3, 9], [-3, -4, 4, 5]))
    check_datasets(cfg)
    (line,) = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert line.endswith("2 of 6 objects are trained on; left out: 2 box(es) without area, 2 outside of the image.")


@pytest.mark.parametrize(
    ("content", "counts"),
    [
        (with_boxes(), "no annotations"),
        (with_boxes([1, 2, 0, 4]), "1 box.es. without area"),
        (with_boxes([50, 2, 4, 4], [1, 99, 4, 4]), "2 outside of the image"),
        (with_boxes([1, 2, 4, 4], iscrowd=1), "1 crowd.s."),
    ],
)
def test_a_data_set_without_objects_cannot_be_trained_on(mine, content, counts):
    cfg, write = mine
    write(content)
    with pytest.raises(InputError, match=f"DATASETS.TRAIN mine.* holds no object to train on: {counts}"):
        check_datasets(cfg)
    check_datasets(cfg, train=False)


def test_a_test_set_may_come_without_annotations(mine):
    cfg, write = mine
    write({key: value for key, value in GOOD.items() if key != "annotations"})
    check_datasets(cfg, train=False)
    with pytest.raises(InputError, match="'annotations' must be a list"):
        check_datasets(cfg)


@pytest.fixture
def second(mine, tmp_path):
    """The config, with another data set like the first; its classes have other names."""
    cfg, _ = mine
    (tmp_path / "second.json").write_text(json.dumps(GOOD).replace('"cat"', '"cow"'))
    name = f"second_{tmp_path.name}"
    cfg.DATASETS.COCO_JSON = [[name, str(tmp_path / "second.json"), str(tmp_path)]]
    register_config_datasets(cfg)
    yield cfg, name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_data_sets_of_different_classes(second, caplog):
    cfg, name = second
    first = cfg.DATASETS.TRAIN[0]
    cfg.DATASETS.TEST = (name,)
    check_datasets(cfg)
    assert "different classes, in the order of their ids: cat, dog and cow, dog" in caplog.text
    cfg.DATASETS.TRAIN = (first, name)
    with pytest.raises(InputError, match=f"{first} and {name} have different classes.*cannot be trained on together"):
        check_datasets(cfg)


def test_proposals_are_checked_where_they_are_read(mine, tmp_path):
    cfg, _ = mine
    cfg.MODEL.LOAD_PROPOSALS = True
    with pytest.raises(InputError, match="PROPOSAL_FILES_TRAIN names 0 files for 1 data sets"):
        check_datasets(cfg)
    cfg.DATASETS.PROPOSAL_FILES_TEST = (str(tmp_path / "gone.pkl"),)
    with pytest.raises(InputError, match="proposals .*gone.pkl cannot be used"):
        check_datasets(cfg, train=False)


def test_a_data_set_from_python_code(mine, tmp_path, monkeypatch):
    cfg, _ = mine
    monkeypatch.chdir(tmp_path)
    box = {"bbox": [0, 0, 50, 20], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    image = {"file_name": "a.png", "image_id": "a", "annotations": [box]}
    DatasetCatalog.register("from_code", lambda: [image])
    MetadataCatalog.get("from_code").thing_classes = ["cat", "dog"]
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("from_code",)
    try:
        check_datasets(cfg)
        image |= {"height": 30, "width": 50}
        with pytest.raises(InputError, match="data set from_code says that a.png has 50×30 pixels"):
            check_datasets(cfg)
    finally:
        DatasetCatalog.remove("from_code")
        MetadataCatalog.remove("from_code")


@pytest.mark.parametrize("name", ["a.png", "c.png"])
def test_images_that_training_skips_are_named_and_no_mistake(mine, tmp_path, caplog, name):
    cfg, write = mine
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(tmp_path / "b.png")
    write({**GOOD, "images": [*GOOD["images"], {**GOOD["images"][0], "id": 2, "file_name": "b.png"}]})
    (tmp_path / "a.png").write_bytes(b"") if name == "a.png" else (tmp_path / "a.png").unlink()
    cfg.DATALOADER.BAD_IMAGES = "skip"
    with pytest.raises(InputError, match="a.png"):
        check_datasets(cfg)
    cfg.DATASETS.TEST = ()
    check_datasets(cfg)
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("sparsercnn.data")]
    (line,) = [line for line in lines if "show no objects" not in line]  # b.png has none
    assert "a.png" in line and "skipped" in line
    (tmp_path / "a.png").unlink(missing_ok=True)
    (tmp_path / "b.png").unlink()
    with pytest.raises(InputError, match="2 of 2 images are missing"):
        check_datasets(cfg)


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
    with pytest.raises(
        InputError, match="no annotation file .*annotations.json of data set mine.* .DETECTRON2_DATASETS is"
    ):
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
        (["../../mine", "file.json", "images"], "'../../mine' names a folder of results and may hold no slashes"),
        (["..", "file.json", "images"], "may hold no slashes"),
        (["a\nb", "file.json", "images"], "may hold no slashes"),
    ],
)
def test_bad_data_set_of_ones_own(entry, message):
    cfg = load_config()
    cfg.DATASETS.COCO_JSON = [entry]
    with pytest.raises(InputError, match=message):
        register_config_datasets(cfg)


@pytest.mark.parametrize(("drop", "fate"), [(True, "left out"), (False, "trained on as negatives")])
def test_the_number_of_images_without_objects_is_always_said(mine, tmp_path, caplog, drop, fate):
    cfg, write = mine
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(tmp_path / "b.png")
    data = copy.deepcopy(GOOD)
    data["images"].append({"id": 2, "file_name": "b.png", "height": 30, "width": 40})
    write(data)
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = drop
    with caplog.at_level("INFO"):
        check_datasets(cfg)
    assert f"1 of 2 images show no objects and are {fate}" in caplog.text
