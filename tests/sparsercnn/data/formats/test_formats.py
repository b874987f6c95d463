"""Every format is recognized and read alike, what is wrong has one line, what is interpreted is said."""

import json

import pytest
from PIL import Image

from sparsercnn.data.formats import UNSPLIT, read_labeled
from sparsercnn.errors import InputError

NAMES = {"yolo": "YOLO", "voc": "Pascal VOC", "coco": "COCO JSON", "csv": "CSV"}


def summary(data):
    """Name and rounded boxes of each picture, by split."""
    return {
        split: {
            image.path.name: (image.size, [(b.label, *(round(x, 2) for x in b.box), b.is_crowd) for b in image.boxes])
            for image in images
        }
        for split, images in data.splits.items()
    }


@pytest.fixture
def folder(tmp_path):
    """A function that makes a folder with one picture of 40×30 pixels, a.png, and text files."""

    def make(**files):
        Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
        for name, text in files.items():
            path = tmp_path / name.replace("__", "/").replace("_dot_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text if isinstance(text, str) else json.dumps(text))
        return tmp_path

    return make


def only(data):
    (image,) = data.images()
    return [(box.label, *box.box) for box in image.boxes]


@pytest.mark.parametrize("kind", NAMES)
def test_all_formats_say_the_same(copies, kind):
    data = read_labeled(copies[kind])
    assert data.format == NAMES[kind]
    assert list(data.splits) == [UNSPLIT]
    assert summary(data) == summary(read_labeled(copies["coco"]))
    assert sum(not image.boxes for image in data.images()) == 1


def test_the_file_itself_may_be_named(copies):
    file = copies["coco"] / "labels.json"
    assert summary(read_labeled(file)) == summary(read_labeled(file.parent))


def test_yolo_splits_by_its_yaml(folder):
    root = folder(data_dot_yaml="train: ../train/images\nval: ../valid/images\nnames: [cat, dog]\nnc: 2\n")
    for split in ("train", "valid"):
        (root / split / "images").mkdir(parents=True)
        (root / split / "labels").mkdir()
        Image.new("RGB", (40, 30)).save(root / split / "images" / f"{split}.png")
    (root / "train" / "labels" / "train.txt").write_text("1 0.5 0.5 0.5 0.2\n0 0.1 0.1 0.3 0.1 0.3 0.4\n")
    data = read_labeled(root)
    assert summary(data) == {
        "train": {"train.png": ((40, 30), [("dog", 10, 12, 20, 6, False), ("cat", 4, 3, 8, 9, False)])},
        "val": {"valid.png": ((40, 30), [])},
    }
    assert data.remarks == {
        "polygon(s) that became their bounding boxes": 1,
        "picture(s) without a label file, which so show no objects": 1,
    }


def test_yolo_sizes_are_of_the_upright_picture(folder):
    root = folder(classes_dot_txt="cat", a_dot_txt="0 0.5 0.5 1 1")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.new("RGB", (40, 30)).save(root / "a.png", exif=exif)
    assert only(read_labeled(root)) == [("cat", 0, 0, 30, 40)]


def test_cvat(folder):
    root = folder(
        annotations_dot_xml="""<annotations><version>1.1</version>
        <image id="0" name="a.png" width="40" height="30" subset="Train">
        <box label="cat" xtl="1.5" ytl="2" xbr="11" ybr="12" occluded="0"/>
        <polygon label="dog" points="3,4;13.0,4;8,24"/><points label="dog" points="3,4"/></image></annotations>"""
    )
    data = read_labeled(root)
    assert list(data.splits) == ["train"]
    assert only(data) == [("cat", 1.5, 2, 9.5, 10), ("dog", 3, 4, 10, 20)]
    assert data.remarks["points(s) left out, which are no boxes"] == 1


def test_labelme(folder):
    shapes = [
        {"label": "cat", "points": [[11, 12], [1, 2]], "shape_type": "rectangle"},
        {"label": "dog", "points": [[10, 10], [13, 14]], "shape_type": "circle"},
        {"label": "dog", "points": [[10, 10]], "shape_type": "point"},
    ]
    root = folder(
        a_dot_json={"version": "5", "shapes": shapes, "imagePath": "..\\x\\a.png", "imageWidth": 40, "imageHeight": 30}
    )
    data = read_labeled(root)
    assert only(data) == [("cat", 1, 2, 10, 10), ("dog", 5, 5, 10, 10)]
    assert data.remarks["point(s) left out, which have no area"] == 1


@pytest.mark.parametrize(
    "table",
    [
        "filename,width,height,class,xmin,ymin,xmax,ymax\na.png,40,30,cat,1,2,11,12",
        "Image Name;Label;x;y;w;h\na.png;cat;1;2;10;10",
        'image_id,bbox,class\na,"[1, 2, 10, 10]",cat',
        "a.png,1,2,11,12,cat",
        "ImageID,LabelName,XMin,XMax,YMin,YMax\na,cat,0.025,0.275,0.066666666,0.4",
    ],
)
def test_tables_of_many_kinds(folder, table):
    ((label, *box),) = only(read_labeled(folder(labels_dot_csv=table)))
    assert label == "cat" and box == pytest.approx([1, 2, 10, 10], abs=1e-4)


def test_tables_may_say_the_split(folder):
    root = folder(labels_dot_csv="file,split,label,x1,y1,x2,y2\na.png,validation,cat,1,2,11,12")
    assert list(read_labeled(root).splits) == ["val"]


YOLO = {"classes_dot_txt": "cat\ndog"}
VOC = "<annotation><size><width>40</width><height>30</height></size><object>{}</object></annotation>"
COCO = {
    "images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 30}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 2, "bbox": [1, 2, 3, 4]}],
    "categories": [{"id": 1, "name": "cat"}],
}
MISTAKES = [
    ({"labels__a_dot_txt": "0 0.5 0.5 0.1 0.1"}, "has YOLO's labels, but no data.yaml or classes.txt"),
    ({}, "holds annotations in none of the formats COCO JSON, YOLO"),
    ({**YOLO, "a_dot_txt": "0 0.5 0.5 0.1 0.1", "b_dot_csv": "file,label,x,y,w,h\n"}, "in several formats"),
    ({**YOLO, "a_dot_txt": ""}, "no picture has an object"),
    ({**YOLO, "b_dot_txt": ""}, "no picture has a label file"),
    ({**YOLO, "a_dot_txt": "0 0.5 0.5 0.1 0.1\n2 0.5 0.5 0.1 0.1"}, "a.txt, line 2: class 2, but there are names for"),
    ({**YOLO, "a_dot_txt": "0 0.5 0.5 0.1"}, "a.txt, line 1: 4 values, where a box has 5"),
    ({**YOLO, "a_dot_txt": "0 0.5 x 0.1 0.1"}, "a.txt, line 1: 'x' is no number"),
    ({**YOLO, "a_dot_txt": "0 20 15 10 10"}, "a.txt, line 1: 20 is no part of the picture's size"),
    ({**YOLO, "a_dot_txt": "cat 0.5 0.5 0.1 0.1"}, "a.txt, line 1: 'cat' is no number"),
    ({"data_dot_yaml": "train: images\nnames: [cat]"}, "'train' is images, which is not there"),
    ({"data_dot_yaml": "train: .\nnames: {0: cat, 2: dog}"}, "the keys of names must be the numbers 0 to 1"),
    ({"a_dot_xml": VOC.format("<name>cat</name>")}, "a.xml: object number 0 from 0, <xmin>: 'None' is no number"),
    ({"b_dot_xml": VOC.format("")}, "b.xml: there is no picture 'b'"),
    ({"b_dot_json": COCO}, "annotation 1 has category 2, which the file does not list"),
    ({"t_dot_csv": "file,label,x,y,w,h\na.png,cat,1,2,3"}, "t.csv, line 2 has 5 values for 6 columns"),
    ({"t_dot_csv": "file,label,x1,y1,x2,y2\na.png,cat,9,2,3,4"}, "t.csv, line 2: the box 9, 2, 3, 4 ends left of"),
    ({"t_dot_csv": "file,label,x,y,w,h\na.png,,1,2,3,4"}, "t.csv, line 2: there is no class name"),
    ({"t_dot_csv": "file,label,x,y,w,h\nc.png,cat,1,2,3,4"}, "t.csv, line 2: there is no picture 'c.png'"),
    ({"c_dot_xml": "<annotations><track label='x'/></annotations>"}, "holds tracks of a video"),
    (
        {"a_dot_json": {"shapes": [{"label": "x", "points": 3}], "imageWidth": 4, "imageHeight": 3}},
        "a.json: shape number 0 from 0: 'points' must be",
    ),
]


@pytest.mark.parametrize(("files", "message"), MISTAKES, ids=[message for _, message in MISTAKES])
def test_mistakes(folder, files, message):
    with pytest.raises(InputError) as error:
        read_labeled(folder(**files))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_pictures_of_one_name_are_told_apart_by_their_folders(folder):
    root = folder()
    for split in ("train", "valid"):
        for name in (split, "copy"):
            (root / name / split).mkdir(parents=True)
        Image.new("RGB", (40, 30)).save(root / split / "same.png")
        (root / split / "same.xml").write_text(
            VOC.format(f"""<name>{split}</name><bndbox><xmin>1</xmin><ymin>1</ymin>
            <xmax>9</xmax><ymax>9</ymax></bndbox>""")
        )
    data = read_labeled(root)
    assert {split: image.path.parent.name for split, (image,) in data.splits.items()} == {
        "train": "train",
        "val": "valid",
    }


def test_masks_and_what_macos_leaves_are_no_pictures_and_no_annotations(folder):
    box = "<name>cat</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    root = folder(Annotations__b_dot_xml=VOC.format(box), __MACOSX__x_dot_xml="AppleDouble")
    (root / "a.png").unlink()
    for name in ("JPEGImages/b.jpg", "SegmentationClass/b.png", "SegmentationObject/b.png"):
        (root / name).parent.mkdir()
        Image.new("RGB", (40, 30)).save(root / name)
    (image,) = read_labeled(root).images()
    assert image.path == root / "JPEGImages" / "b.jpg"


def test_names_of_pictures_in_another_format_are_found(folder):
    assert only(read_labeled(folder(labels_dot_csv="file,label,x,y,w,h\na.jpg,cat,1,2,3,4"))) == [("cat", 1, 2, 3, 4)]


def test_formats_as_another_library_writes_them(copies, tmp_path):
    globox = pytest.importorskip("globox")
    theirs = globox.AnnotationSet.from_coco(copies["coco"] / "labels.json")
    expected = summary(read_labeled(copies["coco"]))
    pictures = copies["coco"] / "photos"
    for kind in ("cvat", "labelme"):
        root = tmp_path / kind
        root.mkdir()
        (root / "photos").symlink_to(pictures)
        for path in pictures.iterdir():
            (root / path.name).symlink_to(path)
        if kind == "cvat":
            theirs.save_cvat(root / "annotations.xml")
        else:
            theirs.save_labelme(root)
        assert summary(read_labeled(root)) == expected
