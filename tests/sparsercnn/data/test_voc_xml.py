"""Mistakes in data sets in VOC's format: each gets one line that names the file and what is wrong."""

import numpy as np
import pytest
from detectron2.data.datasets import load_voc_instances
from PIL import Image

from sparsercnn.data.content import Tally
from sparsercnn.data.voc_xml import check_voc
from sparsercnn.errors import InputError

OBJECT = """<object><name>cat</name><pose>Left</pose><truncated>0</truncated><difficult>0</difficult>
<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>11</xmax><ymax>12</ymax></bndbox></object>"""
GOOD = f"<annotation><size><width>40</width><height>30</height><depth>3</depth></size>{OBJECT}</annotation>"
LAUGHS = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 12))
CLASSES = ("cat", "dog")


@pytest.fixture
def voc(tmp_path):
    """A folder with one image, and a function that checks it with another annotation file or another list."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(tmp_path / "JPEGImages" / "a.jpg")

    def check(xml=GOOD, ids="a\n", evaluated=True):
        data = xml if isinstance(xml, bytes) else xml.encode()
        (tmp_path / "Annotations" / "a.xml").write_bytes(data)
        (tmp_path / "ImageSets" / "Main" / "train.txt").write_bytes(ids if isinstance(ids, bytes) else ids.encode())
        return check_voc(str(tmp_path), "train", CLASSES, evaluated)

    return check


def test_a_good_file_passes_as_detectron2_loads_it(voc, tmp_path):
    content = voc()
    (image,) = load_voc_instances(str(tmp_path), "train", CLASSES)
    assert (content.ids, content.files) == ([image["image_id"]], ["a.jpg"])
    assert content.sizes == [(image["width"], image["height"])] and content.tally == Tally(objects=1)


def test_objects_outside_of_the_image_are_counted(voc):
    beyond = OBJECT.replace("<xmin>1<", "<xmin>41<").replace("<xmax>11<", "<xmax>50<")
    assert voc(GOOD.replace(OBJECT, OBJECT + beyond)).tally == Tally(objects=2, outside=1)


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        ("", "cannot be read as XML"),
        (GOOD[:-9], "cannot be read as XML"),
        (b"\xff\xfe" + GOOD.encode("utf-16-le"), "cannot be read as XML"),
        (f"<!DOCTYPE a [<!ENTITY l0 'ha'>{LAUGHS}]>" + GOOD.replace("cat", "&l11;"), "document type"),
        (f"<!DOCTYPE a [<!ENTITY x SYSTEM 'file:///etc/passwd'>]>{GOOD.replace('cat', '&x;')}", "document type"),
        (f"<!DOCTYPE a SYSTEM 'http://localhost/a.dtd'>{GOOD}", "document type"),
        (GOOD.replace("<width>40</width>", ""), "has no <size/width>"),
        (GOOD.replace(">40<", ">0<"), "the size is 0×30 pixels"),
        (GOOD.replace(">40<", ">40.5<"), "has <size/width> '40.5'; it must be a whole number"),
        (GOOD.replace(">40<", f">{'9' * 5000}<"), "it must be a whole number"),
        (GOOD.replace("<name>cat</name>", ""), "object number 0 from 0 has no <name>"),
        (GOOD.replace("cat", "cow"), "object number 0 from 0 is a 'cow', none of cat, dog"),
        (GOOD.replace("<xmax>11</xmax>", ""), "object number 0 from 0 has no <bndbox/xmax>"),
        (GOOD.replace(">11<", ">nan<"), "<bndbox/xmax> 'nan'; it must be a number"),
        (GOOD.replace(">11<", ">1e30<"), "<bndbox/xmax> '1e30'; it must be a number"),
        (GOOD.replace(">11<", "><b/>11<"), "has no <bndbox/xmax>"),
        (GOOD.replace(">11<", ">-11<"), "has xmax or ymax below xmin or ymin"),
        (GOOD.replace("<pose>Left</pose>", ""), "has no <pose>, which the VOC metrics need"),
        (GOOD.replace("<difficult>0<", "<difficult>no<"), "has <difficult> 'no'"),
    ],
)
def test_a_bad_file_is_named(voc, xml, message):
    with pytest.raises(InputError) as error:
        voc(xml)
    assert "a.xml" in str(error.value) and message in str(error.value) and str(error.value).isprintable()


def test_what_only_the_voc_metrics_need(voc):
    voc(GOOD.replace("<pose>Left</pose>", ""), evaluated=False)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ("", "train.txt lists no images"),
        ("a\na", "train.txt lists image 'a' twice"),
        ("b", "train.txt: 1 of 1 annotation files are missing: .*b.xml"),
        ("../../a", "train.txt: the file of image '../../a', '../../a.xml', leads out of the folder"),
        ("/etc/passwd", "'/etc/passwd.xml', leads out of the folder"),
        (b"a\xff", "train.txt cannot be read"),
        (b"a\0", "has a name that no file can have"),
    ],
)
def test_a_bad_list_is_named(voc, ids, message):
    with pytest.raises(InputError, match=message):
        voc(ids=ids)
