"""What every reader of a format returns: labeled pictures, by split, with paths on disk and boxes in pixels."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import InputError, one_line
from ..coco_json import LARGEST_COORDINATE
from ..image_files import brief
from ..images import image_size

TRAIN, VAL, TEST = SPLITS = ("train", "val", "test")
UNSPLIT = ""
"""Key in `LabeledData.splits` of pictures that the source assigns to no split."""
# What people call the splits in names of files and folders.
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "trainval"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "dev"), VAL),
    **dict.fromkeys(("test", "testing"), TEST),
}


@dataclass
class LabeledBox:
    """One object of a picture.

    Attributes:
        label: name of its class.
        box: absolute xywh in pixels.
        is_crowd: it is a region of many objects.
    """

    label: str
    box: tuple[float, float, float, float]
    is_crowd: bool = False


@dataclass
class LabeledImage:
    """A picture on disk and its objects.

    Attributes:
        path: of the file.
        size: width and height in pixels; 0 where the annotation does not say.
        boxes: its objects; none for a picture that was looked at and shows none.
    """

    path: Path
    size: tuple[int, int]
    boxes: list[LabeledBox] = field(default_factory=list)


@dataclass
class LabeledData:
    """A data set as it was found.

    Attributes:
        format: name of the format, for people.
        splits: pictures by "train", "val" and "test", or all under `UNSPLIT` where the source has no splits.
        remarks: what had to be interpreted or left out, such as "3 points, which have no area", and how often.
        classes: names that the source declares, whether or not an object has them; empty where it declares none.
    """

    format: str
    splits: dict[str, list[LabeledImage]]
    remarks: Counter[str] = field(default_factory=Counter)
    classes: set[str] = field(default_factory=set)

    def images(self) -> list[LabeledImage]:
        """The pictures of all splits."""
        return [image for images in self.splits.values() for image in images]


def find_files(folder: Path, suffix: str) -> list[Path]:
    """The files below a folder with this suffix, sorted, without hidden ones and what macOS adds to archives."""
    found = (path for path in sorted(folder.rglob(f"*{suffix}")) if path.is_file())
    return [path for path in found if not any(_is_hidden(name) for name in path.relative_to(folder).parts)]


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def split_of(path: Path, root: Path) -> str:
    """The split that the name of a file, or of the folders between it and `root`, speaks of; `UNSPLIT` if none does.

    "valid/a.xml", "instances_val2017.json" and "labels-val.csv" all are of "val". What is nearest to the file counts.
    """
    for part in reversed(path.relative_to(root).parts):
        words = re.split(r"[^a-z]+", part.lower())
        found = {SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS}
        if len(found) == 1:
            return found.pop()
    return UNSPLIT


def corners_to_box(
    corners: Sequence[object], where: str, scale: tuple[float, float] = (1, 1)
) -> tuple[float, float, float, float]:
    """The absolute xywh box of two corners, after a check that they are numbers in order.

    Args:
        corners: x0, y0, x1, y1, numbers or their text.
        where: file and entry, for the message.
        scale: what x and y are multiplied with: width and height of the picture where they are relative to it.

    Raises:
        InputError: a value is no number of pixels, or the second corner lies left of or above the first.
    """
    x0, y0, x1, y1 = (number(value, where) for value in corners)
    if x1 < x0 or y1 < y0:
        raise InputError(f"{where}: the box {x0:g}, {y0:g}, {x1:g}, {y1:g} ends left of, or above, where it begins")
    return x0 * scale[0], y0 * scale[1], (x1 - x0) * scale[0], (y1 - y0) * scale[1]


def bounding_box(
    points: Sequence[tuple[float, float]], where: str, scale: tuple[float, float] = (1, 1)
) -> tuple[float, float, float, float]:
    """The absolute xywh box around points; `where` and `scale` as for `corners_to_box`."""
    xs, ys = zip(*points, strict=True)
    return corners_to_box((min(xs), min(ys), max(xs), max(ys)), where, scale)


def picture_size(picture: Path) -> tuple[int, int]:
    """Width and height of a picture, upright; (0, 0) if it cannot be read, for whoever then reads it to say so."""
    try:
        return image_size(str(picture))
    except InputError:
        return (0, 0)


def number(value: object, where: str) -> float:
    """`value`, a number or its text, as a number of pixels.

    Raises:
        InputError: it is none, not finite, or no coordinate of any picture.
    """
    try:
        result = float(value)  # type: ignore[arg-type]  # what has no number raises an error
    except (TypeError, ValueError, OverflowError):
        result = math.nan
    if not abs(result) <= LARGEST_COORDINATE:
        raise InputError(f"{where}: {brief(value)!r} is no number up to {LARGEST_COORDINATE:.0f}")
    return result


def whole(value: object, where: str) -> int:
    """`value`, a number or its text, as a whole number; see `number` for the error."""
    result = number(value, where)
    if result != int(result):
        raise InputError(f"{where}: {brief(value)!r} is no whole number")
    return int(result)


def class_name(value: object, where: str) -> str:
    """A class name without space around it.

    Raises:
        InputError: there is none.
    """
    name = str(value).strip() if isinstance(value, str | int) else ""
    if not name:
        raise InputError(f"{where}: there is no class name, but {brief(value)!r}")
    return one_line(name)


def read_text(path: Path) -> str:
    """The text of a file in UTF-8.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text in UTF-8: {error}") from error
