"""Pascal VOC data sets."""

import os
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_voc_instances, register_pascal_voc
from detectron2.structures import BoxMode

ANNOTATION = """<annotation><size><width>50</width><height>40</height><depth>3</depth></size>
<object><name>cat</name><difficult>0</difficult>
<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>30</xmax><ymax>40</ymax></bndbox></object>
<object><name>dog</name><difficult>1</difficult>
<bndbox><xmin>10</xmin><ymin>11</ymin><xmax>12</xmax><ymax>13</ymax></bndbox></object>
</annotation>"""


@pytest.fixture
def voc(tmp_path):
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("000001\n000002\n")
    for image_id in ("000001", "000002"):
        (tmp_path / "Annotations" / f"{image_id}.xml").write_text(ANNOTATION)
    return str(tmp_path)


def test_load(voc):
    first, second = load_voc_instances(voc, "train", ["dog", "cat"])
    assert first["image_id"] == "000001" and second["image_id"] == "000002"
    assert first["file_name"] == os.path.join(voc, "JPEGImages", "000001.jpg")
    assert (first["height"], first["width"]) == (40, 50)
    cat, dog = first["annotations"]
    # VOC's first pixel is 1 and both ends belong to the box.
    assert cat == {"category_id": 1, "bbox": [0, 1, 30, 40], "bbox_mode": BoxMode.XYXY_ABS}
    assert dog["category_id"] == 0 and dog["bbox"] == [9, 10, 12, 13]


def test_unknown_class_fails(voc):
    with pytest.raises(ValueError):
        load_voc_instances(voc, "train", ["cat"])


def test_register(voc):
    name = "my_voc_test"
    register_pascal_voc(name, voc, "train", 2012, ["dog", "cat"])
    try:
        meta = MetadataCatalog.get(name)
        assert (meta.thing_classes, meta.dirname, meta.split, meta.year) == (["dog", "cat"], voc, "train", 2012)
        assert len(DatasetCatalog.get(name)) == 2
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_real_annotations():
    bccd = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / "bccd"
    if not bccd.is_dir():
        pytest.skip("needs the BCCD photos: set DETECTRON2_DATASETS to the folder that holds bccd/")
    images = load_voc_instances(str(bccd), "test", ["WBC", "RBC", "Platelets"])
    assert len(images) == 72
    for image in images:
        assert os.path.isfile(image["file_name"])
        for annotation in image["annotations"]:
            x0, y0, x1, y1 = annotation["bbox"]
            assert 0 <= x0 + 1 and x0 < x1 <= image["width"] and y0 < y1 <= image["height"]
