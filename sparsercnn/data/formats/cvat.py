"""CVAT's XML, "CVAT for images 1.1"."""

from pathlib import Path
from xml.etree import ElementTree

from ...errors import InputError
from ..image_files import brief
from ..voc_xml import parse_xml
from .labeled import (
    SPLIT_WORDS,
    LabeledBox,
    LabeledData,
    LabeledImage,
    bounding_box,
    class_name,
    corners_to_box,
    find_files,
    number,
    split_of,
    whole,
)
from .pictures import Pictures

NAME = "CVAT XML"
SIDES = ("xtl", "ytl", "xbr", "ybr")


def find(folder: Path) -> list[Path]:
    """The files of this format in a folder and below it."""
    return [path for path in find_files(folder, ".xml") if recognizes(path)]


def recognizes(path: Path) -> bool:
    """Whether an XML file begins as one of this format."""
    try:
        return next(ElementTree.iterparse(path, ["start"]))[1].tag == "annotations"
    except (OSError, ElementTree.ParseError, StopIteration):
        return False


def read(files: list[Path], root: Path, pictures: Pictures) -> LabeledData:
    """Read files of this format: boxes, and the bounding boxes of polygons.

    Args:
        files: annotation files.
        root: folder that the names of splits are looked for below, where pictures have no `subset`.
        pictures: where the pictures are.

    Raises:
        InputError: a file is malformed or of a video, a box is wrong, or a picture is not there.
    """
    data = LabeledData(NAME, {})
    for path in files:
        content = parse_xml(str(path))
        if content.find("track") is not None:
            raise InputError(f"{path} holds tracks of a video; export it as 'CVAT for images 1.1' with its pictures")
        for entry in content.findall("image"):
            subset = (entry.get("subset") or "").lower()
            split = SPLIT_WORDS.get(subset, split_of(path, root))
            data.splits.setdefault(split, []).append(_read_image(entry, path, pictures, data))
    return data


def _read_image(entry: ElementTree.Element, path: Path, pictures: Pictures, data: LabeledData) -> LabeledImage:
    where = f"{path}: image {entry.get('id')}"
    size = whole(entry.get("width"), f"{where}, width"), whole(entry.get("height"), f"{where}, height")
    image = LabeledImage(pictures.named(entry.get("name") or "", where, path.parent), size)
    for i, shape in enumerate(entry):
        at = f"{where}, shape number {i} from 0"
        if shape.tag == "box":
            if float(shape.get("rotation") or 0):
                data.remarks["rotated box(es) read as if they were upright"] += 1
            box = corners_to_box([shape.get(side) for side in SIDES], at)
        elif shape.tag == "polygon":
            data.remarks["polygon(s) that became their bounding boxes"] += 1
            box = bounding_box(_points(shape.get("points") or "", at), at)
        else:
            data.remarks[f"{brief(shape.tag)}(s) left out, which are no boxes"] += 1
            continue
        image.boxes.append(LabeledBox(class_name(shape.get("label"), at), box))
    return image


def _points(text: str, where: str) -> list[tuple[float, float]]:
    points = []
    for pair in text.split(";"):
        x, _, y = pair.partition(",")
        points.append((number(x, where), number(y, where)))
    return points
