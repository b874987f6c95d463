"""LabelMe: a JSON file for each picture, with rectangles, polygons and circles."""

import json
import math
import re
from pathlib import Path
from typing import Any

from ...errors import InputError
from ..image_files import brief
from .labeled import (
    LabeledBox,
    LabeledData,
    LabeledImage,
    bounding_box,
    class_name,
    find_files,
    number,
    read_text,
    split_of,
    whole,
)
from .pictures import Pictures

NAME = "LabelMe JSON"
HEAD = 4096
KEYS = re.compile(r'"(shapes|imagePath|flags)"\s*:')


def find(folder: Path) -> list[Path]:
    """The files of this format in a folder and below it."""
    return [path for path in find_files(folder, ".json") if recognizes(path)]


def recognizes(path: Path) -> bool:
    """Whether a JSON file begins as one of this format."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            return bool(KEYS.search(file.read(HEAD)))
    except (OSError, UnicodeDecodeError):
        return False


def read(files: list[Path], root: Path, pictures: Pictures) -> LabeledData:
    """Read files of this format: rectangles, and the bounding boxes of polygons and circles.

    Args:
        files: a JSON file for each picture.
        root: folder that the names of splits are looked for below.
        pictures: where the pictures are.

    Raises:
        InputError: a file is malformed, a shape is wrong, or a picture is not there.
    """
    data = LabeledData(NAME, {})
    for path in files:
        data.splits.setdefault(split_of(path, root), []).append(_read_file(path, pictures, data))
    return data


def _read_file(path: Path, pictures: Pictures, data: LabeledData) -> LabeledImage:
    try:
        content = json.loads(read_text(path))
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        raise InputError(f"{path}: there is no list 'shapes'")
    size = [whole(content.get(side), f"{path}: {side}") for side in ("imageWidth", "imageHeight")]
    name = content.get("imagePath")
    picture = pictures.named(str(name), str(path), path.parent) if name else pictures.of_stem(path, str(path))
    image = LabeledImage(picture, (size[0], size[1]))
    for i, shape in enumerate(content["shapes"]):
        where = f"{path}: shape number {i} from 0"
        if not isinstance(shape, dict):
            raise InputError(f"{where} is {brief(shape)!r}")
        if box := _box(shape, where, data):
            image.boxes.append(LabeledBox(class_name(shape.get("label"), where), box))
    return image


def _box(shape: dict[str, Any], where: str, data: LabeledData) -> tuple[float, float, float, float] | None:
    kind = str(shape.get("shape_type") or "polygon")
    try:
        points = [(number(x, where), number(y, where)) for x, y in shape["points"]]
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{where}: 'points' must be a list of pairs of numbers") from error
    if kind == "circle" and len(points) == 2:
        (cx, cy), edge = points
        radius = math.dist((cx, cy), edge)
        points = [(cx - radius, cy - radius), (cx + radius, cy + radius)]
    elif kind not in ("rectangle", "polygon", "mask"):
        data.remarks[f"{brief(kind)}(s) left out, which have no area"] += 1
        return None
    if len(points) < 2:
        raise InputError(f"{where}: a {brief(kind)} of {len(points)} point(s)")
    if kind != "rectangle":
        data.remarks[f"{brief(kind)}(s) that became their bounding boxes"] += 1
    return bounding_box(points, where)
