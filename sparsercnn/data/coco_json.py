"""Checks of annotation files in COCO format, whoever wrote them: a mistake is named with the file and the entry."""

import json
import os
import reprlib
from collections.abc import Container, Iterable
from typing import Any

from detectron2.utils.file_io import PathManager

from ..errors import InputError
from .content import Content

# Larger coordinates are no pixels, and overflow single precision further on.
LARGEST_COORDINATE = 1e6
# The metrics count areas up to (10^5)² and leave larger ones out.
LARGEST_AREA = 1e10
# Larger numbers lose digits where ids are kept as floating-point numbers, as in JSON itself.
LARGEST_ID = 2**53

_brief = reprlib.Repr()
_brief.maxstring = _brief.maxother = 60


def check_coco_json(path: str, missing: str = "", evaluated: bool = False, trained: bool = True) -> Content:
    """Check an annotation file in COCO format.

    Args:
        path: the file.
        missing: hint for a message that there is no such file.
        evaluated: it must also have what the COCO metrics need: `area` and `iscrowd` of each annotation.
        trained: it must have annotations. Test sets are published without.

    Returns:
        What the file holds; classes are sorted by their ids.

    Raises:
        InputError: the file is missing, no JSON, or not in COCO format, ids repeat or refer to nothing, or a value
            makes no sense.
    """
    data = _read(path, missing)
    if not isinstance(data, dict):
        raise InputError(f"{path} is not in COCO format: it holds a {type(data).__name__}, not an object")
    if not trained:
        data.setdefault("annotations", [])
    for key in ("images", "annotations", "categories"):
        if not isinstance(data.get(key), list) or not all(isinstance(entry, dict) for entry in data[key]):
            raise InputError(f"{path} is not in COCO format: '{key}' must be a list of objects")
        if key != "annotations" and not data[key]:
            raise InputError(f"{path} lists no {key}")
    check = EntryCheck(path)
    categories = check.categories(data["categories"])
    sizes = check.images(data["images"])
    content = Content(
        path,
        [image["file_name"] for image in data["images"]],
        list(sizes),
        list(sizes.values()),
        [categories[i] for i in sorted(categories)],
    )
    with_objects = set()
    for i, annotation in enumerate(data["annotations"]):
        check.annotation(i, annotation, sizes, categories, evaluated)
        if not annotation.get("iscrowd"):
            with_objects.add(annotation["image_id"])
        content.tally.add(annotation["bbox"], sizes[annotation["image_id"]], bool(annotation.get("iscrowd")))
    check.unique_ids("annotation", data["annotations"])
    content.negatives = len(sizes) - len(with_objects)
    return content


def _read(path: str, missing: str) -> Any:
    local = PathManager.get_local_path(path)
    if not os.path.isfile(local):
        raise InputError(f"there is no annotation file {path}{missing}")
    try:
        with open(local, encoding="utf-8") as file:
            return json.load(file, object_pairs_hook=_without_repetition)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except RecursionError as error:
        raise InputError(f"{path} is not in COCO format: it is nested too deeply") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not JSON in UTF-8: {error}") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from error


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these keys and values, where Python's reader would silently keep the last of equal keys."""
    entry = dict(pairs)
    if len(entry) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the object with id {_brief.repr(entry.get('id'))} has the key {_brief.repr(repeated)} twice")
    return entry


class EntryCheck:
    """Checks entries of one annotation file; the messages name the file and the entry."""

    def __init__(self, path: str):
        self.path = path

    def fail(self, kind: str, index: int, entry: dict, problem: str) -> InputError:
        name = _brief.repr(entry["id"]) if "id" in entry else f"number {index} from 0"
        return InputError(f"{self.path}: {kind} {name} {problem}")

    def keys(self, kind: str, index: int, entry: dict, **types: type | tuple) -> None:
        for key, kinds in types.items():
            value = entry.get(key)
            if isinstance(value, bool) or not isinstance(value, kinds):
                found = f"has {key} {_brief.repr(value)}" if key in entry else f"has no '{key}'"
                names = " or ".join(k.__name__ for k in (kinds if isinstance(kinds, tuple) else (kinds,)))
                raise self.fail(kind, index, entry, f"{found}; it must be of type {names}")
        if isinstance(entry["id"], int) and abs(entry["id"]) > LARGEST_ID:
            raise self.fail(kind, index, entry, f"has an id beyond {LARGEST_ID}")

    def unique_ids(self, kind: str, entries: Iterable[dict]) -> None:
        seen: dict = {}
        for i, entry in enumerate(entries):
            first = seen.setdefault(entry["id"], i)
            if first != i:
                raise self.fail(kind, i, entry, f"stands in the file twice (numbers {first} and {i}): ids are unique")

    def categories(self, entries: list[dict]) -> dict[int, str]:
        """Names by id."""
        for i, entry in enumerate(entries):
            self.keys("category", i, entry, id=int, name=str)
        self.unique_ids("category", entries)
        return {entry["id"]: entry["name"] for entry in entries}

    def images(self, entries: list[dict]) -> dict[int | str, tuple[int, int]]:
        """Widths and heights by id."""
        kind = type(entries[0].get("id"))
        for i, entry in enumerate(entries):
            self.image(i, entry, kind)
        self.unique_ids("image", entries)
        return {entry["id"]: (entry["width"], entry["height"]) for entry in entries}

    def image(self, i: int, entry: dict, kind: type) -> None:
        self.keys("image", i, entry, id=(int, str), file_name=str, height=int, width=int)
        if type(entry["id"]) is not kind:
            raise self.fail("image", i, entry, "has an id of another type than the first image; use one type")
        if not (0 < entry["width"] <= LARGEST_COORDINATE and 0 < entry["height"] <= LARGEST_COORDINATE):
            size = f"{_brief.repr(entry['width'])}×{_brief.repr(entry['height'])}"
            raise self.fail("image", i, entry, f"has {size} pixels; sides are 1 to {LARGEST_COORDINATE:.0f} long")

    def annotation(self, i: int, entry: dict, images: Container, categories: Container, evaluated: bool) -> None:
        self.keys("annotation", i, entry, id=int, image_id=(int, str), category_id=int)
        if evaluated:
            self.keys("annotation", i, entry, area=(int, float))
            if not 0 <= entry["area"] <= LARGEST_AREA:
                area = f"has area {_brief.repr(entry['area'])}; it must be 0 to {LARGEST_AREA:.0f} square pixels"
                raise self.fail("annotation", i, entry, area)
            if "iscrowd" not in entry:
                raise self.fail("annotation", i, entry, "has no 'iscrowd'; it must be 0 or 1")
        if entry["image_id"] not in images:
            image = _brief.repr(entry["image_id"])
            raise self.fail("annotation", i, entry, f"is of image {image}, which the file does not list")
        if entry["category_id"] not in categories:
            category = _brief.repr(entry["category_id"])
            raise self.fail("annotation", i, entry, f"has category {category}, which the file does not list")
        self._box(i, entry)
        self._flags(i, entry)
        self._shapes(i, entry)

    def _box(self, i: int, entry: dict) -> None:
        box = entry.get("bbox")
        if not isinstance(box, list) or len(box) != 4 or not all(_is_coordinate(x) for x in box):
            expected = "it must be 4 numbers of pixels: x, y, width, height"
            raise self.fail("annotation", i, entry, f"has bbox {_brief.repr(box)}; {expected}")
        if box[2] < 0 or box[3] < 0:
            raise self.fail("annotation", i, entry, f"has bbox {box}, whose width or height is negative")

    def _flags(self, i: int, entry: dict) -> None:
        crowd = entry.get("iscrowd", 0)
        if not isinstance(crowd, int) or crowd not in (0, 1):
            raise self.fail("annotation", i, entry, f"has iscrowd {_brief.repr(crowd)}; it must be 0 or 1")
        if entry.get("ignore", 0) != 0:
            ignore = _brief.repr(entry["ignore"])
            problem = f"has ignore {ignore}, which detectron2 does not know; remove it or set iscrowd to 1"
            raise self.fail("annotation", i, entry, problem)

    def _shapes(self, i: int, entry: dict) -> None:
        """What boxes do not need, but detectron2 looks at while it loads the file."""
        if entry.get("segmentation") and not _is_mask(entry["segmentation"]):
            raise self.fail("annotation", i, entry, "has a 'segmentation' that is no list of polygons and no mask")
        keypoints = entry.get("keypoints") or []
        if not isinstance(keypoints, list) or not all(isinstance(x, int | float) for x in keypoints):
            raise self.fail("annotation", i, entry, "has 'keypoints' that are no list of numbers")


def _is_coordinate(x: object) -> bool:
    # Not math.isfinite: it raises an error for integers beyond the range of floating-point numbers.
    return isinstance(x, int | float) and not isinstance(x, bool) and -LARGEST_COORDINATE <= x <= LARGEST_COORDINATE


def _is_mask(segmentation: object) -> bool:
    """Whether it is a list of polygons or an encoded mask, by its outer form."""
    if isinstance(segmentation, dict):
        return segmentation.keys() >= {"size", "counts"}
    return isinstance(segmentation, list) and all(isinstance(polygon, list) for polygon in segmentation)
