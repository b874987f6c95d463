"""Checks of data sets in Pascal VOC's format, whoever wrote them: a mistake is named with the file and the entry."""

import math
import os
import xml.etree.ElementTree as ET
from collections.abc import Sequence

from detectron2.utils.file_io import PathManager

from ..errors import InputError, one_line
from .coco_json import LARGEST_COORDINATE
from .content import Content
from .image_files import brief, find_files, some

SIDES = ("xmin", "ymin", "xmax", "ymax")
# What the VOC metrics read besides the box: detectron2 expects them all.
EVALUATED_TAGS = ("pose", "truncated", "difficult")


class _PlainXML(ET.TreeBuilder):
    """Refuses document types: VOC files have none, and their entities can fill the memory or name other files."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("it has a document type, whose entities could do harm")


def parse_xml(path: str) -> ET.Element:
    """The root of an XML file, which may be a stranger's: entities, which could fill the memory, are refused.

    Raises:
        InputError: the file cannot be read, or is no such XML.
    """
    try:
        with PathManager.open(path) as file:
            root = ET.parse(file, ET.XMLParser(target=_PlainXML())).getroot()
    except (OSError, SyntaxError, ValueError, LookupError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as XML: {one_line(str(error))}") from error
    assert root is not None  # only of an empty document, which is a SyntaxError
    return root


def check_voc(folder: str, split: str, classes: Sequence[str], evaluated: bool = False) -> Content:
    """Check a data set in VOC's format: one XML file for each image that `ImageSets/Main/SPLIT.txt` lists.

    Args:
        folder: holds `Annotations`, `ImageSets` and `JPEGImages`.
        split: which list.
        classes: names that objects may have.
        evaluated: objects must also have what the VOC metrics need, `pose`, `truncated` and `difficult`.

    Raises:
        InputError: a file is missing, malformed or outside of its folder, an image is listed twice, or an object has an
            unknown class or no proper box.
    """
    listing = os.path.join(folder, "ImageSets", "Main", f"{split}.txt")
    try:
        with PathManager.open(listing) as file:
            ids: list[int | str] = [*file.read().split()]
    except (OSError, ValueError) as error:
        raise InputError(f"{one_line(listing)} cannot be read: {one_line(str(error))}") from error
    if not ids:
        raise InputError(f"{listing} lists no images")
    repeated = next((i for i in ids if ids.count(i) > 1), None) if len(set(ids)) < len(ids) else None
    if repeated is not None:
        raise InputError(f"{listing} lists image '{brief(repeated)}' twice")
    content = Content(listing, [f"{i}.jpg" for i in ids], ids, [], list(classes))
    paths, missing = find_files(os.path.join(folder, "Annotations"), [f"{i}.xml" for i in ids], ids, listing)
    if missing:
        raise InputError(f"{listing}: {len(missing)} of {len(ids)} annotation files are missing: {some(missing)}")
    for path in paths:
        _FileCheck(path).add_to(content, evaluated)
    return content


class _FileCheck:
    """Checks one XML file; the messages name it and the object."""

    def __init__(self, path: str):
        self.path = path
        self.root = parse_xml(path)

    def add_to(self, content: Content, evaluated: bool) -> None:
        """Add the image's size and its objects."""
        size = [self._number(self.root, f"size/{side}", int) for side in ("width", "height")]
        if not all(0 < side <= LARGEST_COORDINATE for side in size):
            raise InputError(f"{self.path}: the size is {size[0]}×{size[1]} pixels; sides are 1 pixel long or more")
        content.sizes.append((size[0], size[1]))
        objects = self.root.findall("object")
        content.negatives += not objects
        for i, entry in enumerate(objects):
            where = f"object number {i} from 0"
            name = self._text(entry, "name", where)
            if name not in content.classes:
                raise InputError(f"{self.path}: {where} is a '{brief(name)}', none of {some(content.classes)}")
            if evaluated:
                self._evaluated(entry, where)
            xmin, ymin, xmax, ymax = (self._number(entry, f"bndbox/{side}", float, where) for side in SIDES)
            if xmax < xmin or ymax < ymin:
                raise InputError(f"{self.path}: {where} has xmax or ymax below xmin or ymin")
            # VOC counts pixels from 1 and includes both ends.
            content.tally.add((xmin - 1, ymin - 1, xmax - xmin + 1, ymax - ymin + 1), content.sizes[-1], False)

    def _evaluated(self, entry: ET.Element, where: str) -> None:
        for tag in EVALUATED_TAGS:
            if entry.find(tag) is None:
                raise InputError(f"{self.path}: {where} has no <{tag}>, which the VOC metrics need")
        for tag in EVALUATED_TAGS[1:]:
            self._number(entry, tag, int, where)

    def _text(self, entry: ET.Element, tag: str, where: str) -> str:
        text = entry.findtext(tag)
        if not text:
            raise InputError(f"{self.path}: {where} has no <{tag}>")
        return text

    def _number(self, entry: ET.Element, tag: str, kind: type, where: str = "the annotation") -> float:
        text = self._text(entry, tag, where)
        try:
            number = kind(text)
            if math.isfinite(number) and abs(number) <= LARGEST_COORDINATE:
                return number
        except (ValueError, OverflowError):
            pass
        expected = f"{'a whole' if kind is int else 'a'} number up to {LARGEST_COORDINATE:.0f}"
        raise InputError(f"{self.path}: {where} has <{tag}> '{brief(text)}'; it must be {expected}")
