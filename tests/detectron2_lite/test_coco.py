"""COCO-format data sets: loading, registering, converting."""

import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import convert_to_coco_json, load_coco_json, register_coco_instances
from detectron2.data.datasets.coco import convert_to_coco_dict
from detectron2.structures import BoxMode


def coco_dict(category_ids=(3, 7)):
    return {
        "images": [
            {"id": 20, "file_name": "b.jpg", "width": 40, "height": 30},
            {"id": 10, "file_name": "a.jpg", "width": 50, "height": 60},
        ],
        "categories": [{"id": id, "name": f"class{id}"} for id in category_ids],
        "annotations": [
            {"id": 1, "image_id": 10, "category_id": category_ids[1], "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0},
            {"id": 2, "image_id": 10, "category_id": category_ids[0], "bbox": [5, 6, 7, 8], "area": 56, "iscrowd": 1},
        ],
    }


@pytest.fixture
def name():
    name = "custom_test"
    yield name
    for catalog in (DatasetCatalog, MetadataCatalog):
        if name in catalog:
            catalog.remove(name)


@pytest.fixture
def write(tmp_path):
    def write(content):
        path = tmp_path / "instances.json"
        path.write_text(json.dumps(content))
        return str(path)

    return write


def test_load_without_name_keeps_category_ids(write):
    first, second = load_coco_json(write(coco_dict()), "root")
    assert (first["image_id"], first["file_name"], first["height"], first["width"]) == (10, "root/a.jpg", 60, 50)
    assert second["image_id"] == 20 and second["annotations"] == []
    annotation = first["annotations"][0]
    assert annotation["bbox"] == [1, 2, 3, 4] and annotation["bbox_mode"] == BoxMode.XYWH_ABS
    assert [a["category_id"] for a in first["annotations"]] == [7, 3]
    assert [a["iscrowd"] for a in first["annotations"]] == [0, 1]


def test_load_with_name_maps_category_ids_and_warns(write, name, detectron2_log):
    first, _ = load_coco_json(write(coco_dict()), "root", name)
    assert [a["category_id"] for a in first["annotations"]] == [1, 0]
    meta = MetadataCatalog.get(name)
    assert meta.thing_classes == ["class3", "class7"]
    assert meta.thing_dataset_id_to_contiguous_id == {3: 0, 7: 1}
    assert "We'll apply a mapping for you" in detectron2_log.text


def test_contiguous_category_ids_are_not_warned_about(write, name, detectron2_log):
    first, _ = load_coco_json(write(coco_dict((1, 2))), "root", name)
    assert [a["category_id"] for a in first["annotations"]] == [1, 0]
    assert "mapping" not in detectron2_log.text


def test_extra_annotation_keys(write):
    first, _ = load_coco_json(write(coco_dict()), "root", extra_annotation_keys=["area"])
    assert [a["area"] for a in first["annotations"]] == [12, 56]


def test_duplicate_annotation_ids_fail(write):
    content = coco_dict()
    content["annotations"][1]["id"] = 1
    with pytest.raises(AssertionError, match="are not unique"):
        load_coco_json(write(content), "root")


def test_empty_box_fails(write):
    content = coco_dict()
    content["annotations"][0]["bbox"] = []
    with pytest.raises(ValueError, match="image 10 contains empty 'bbox'"):
        load_coco_json(write(content), "root")


def test_unlisted_category_fails(write, name):
    content = coco_dict()
    content["annotations"][0]["category_id"] = 99
    with pytest.raises(KeyError, match="category_id=99"):
        load_coco_json(write(content), "root", name)


def test_annotations_of_absent_images_are_warned_about(write, detectron2_log):
    content = coco_dict()
    content["annotations"].append({**content["annotations"][0], "id": 3, "image_id": 99})
    load_coco_json(write(content), "root")
    assert "contains 3 annotations, but only 2 of them match" in detectron2_log.text


def test_register(write, name):
    json_file = write(coco_dict())
    register_coco_instances(name, {"note": "mine"}, json_file, "root")
    meta = MetadataCatalog.get(name)
    assert (meta.json_file, meta.image_root, meta.evaluator_type, meta.note) == (json_file, "root", "coco", "mine")
    assert len(DatasetCatalog.get(name)) == 2
    assert meta.thing_classes == ["class3", "class7"]


def test_converting_restores_ids_and_boxes(write, name):
    register_coco_instances(name, {}, write(coco_dict()), "root")
    DatasetCatalog.get(name)
    converted = convert_to_coco_dict(name)
    assert [(c["id"], c["name"]) for c in converted["categories"]] == [(3, "class3"), (7, "class7")]
    assert [image["id"] for image in converted["images"]] == [10, 20]
    annotations = converted["annotations"]
    assert [a["id"] for a in annotations] == [1, 2]
    assert [a["category_id"] for a in annotations] == [7, 3]
    assert [a["bbox"] for a in annotations] == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert [a["area"] for a in annotations] == [12, 56]
    assert [a["iscrowd"] for a in annotations] == [0, 1]


def register_boxes(name, bbox):
    record = {"file_name": "a.jpg", "image_id": "a", "height": 9, "width": 9}
    annotation = {"bbox": bbox, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    DatasetCatalog.register(name, lambda: [{**record, "annotations": [annotation]}])
    MetadataCatalog.get(name).set(thing_classes=["thing"])


def test_converting_xyxy_arrays(name):
    register_boxes(name, np.array([1.0, 2.0, 4.0, 8.0]))
    (annotation,) = convert_to_coco_dict(name)["annotations"]
    assert annotation["bbox"] == [1, 2, 3, 6]
    assert annotation["area"] == 18
    assert annotation["image_id"] == "a" and annotation["category_id"] == 0 and annotation["iscrowd"] == 0


def test_converting_boxes_of_wrong_shape_fails(name):
    register_boxes(name, np.zeros((1, 4)))
    with pytest.raises(ValueError, match="1-dimensional"):
        convert_to_coco_dict(name)


def test_json_is_cached_unless_refused(name, tmp_path, detectron2_log):
    register_boxes(name, [1, 2, 4, 8])
    path = tmp_path / "folder" / "cache.json"
    convert_to_coco_json(name, str(path))
    assert load_coco_json(str(path), "")[0]["annotations"][0]["bbox"] == [1, 2, 3, 6]

    path.write_text("{}")
    convert_to_coco_json(name, str(path), allow_cached=True)
    assert path.read_text() == "{}"
    assert "previously cached" in detectron2_log.text
    convert_to_coco_json(name, str(path), allow_cached=False)
    assert "annotations" in json.loads(path.read_text())
