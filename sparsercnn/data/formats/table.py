"""Plain CSV: a row for each object, with the picture's file name, the class and the box."""

import csv
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from ...errors import InputError
from ..image_files import brief, some
from .labeled import (
    SPLIT_WORDS,
    LabeledBox,
    LabeledData,
    LabeledImage,
    class_name,
    corners_to_box,
    find_files,
    number,
    picture_size,
    read_text,
    split_of,
)
from .pictures import Pictures

NAME = "CSV"
# What people call the columns, in lower case, without spaces, "-" and "_".
FILE = ("filename", "file", "image", "imagepath", "imagename", "path", "filepath", "imageid", "img", "imagefile")
LABEL = ("class", "label", "classname", "name", "category", "labelname", "categoryname", "object", "species")
SPLIT = ("split", "subset", "set")
CORNERS = (
    ("xmin", "ymin", "xmax", "ymax"),
    ("x1", "y1", "x2", "y2"),
    ("x0", "y0", "x1", "y1"),
    ("left", "top", "right", "bottom"),
)
SIZED = (
    ("x", "y", "width", "height"),
    ("x", "y", "w", "h"),
    ("left", "top", "width", "height"),
    ("xmin", "ymin", "width", "height"),
    ("bboxx", "bboxy", "bboxwidth", "bboxheight"),
    ("bboxx", "bboxy", "bboxw", "bboxh"),
)
# One column with a list of x, y, width and height.
LISTED = ("bbox", "box")
# Without a header: as keras-retinanet reads it.
NO_HEADER = ("filename", "xmin", "ymin", "xmax", "ymax", "class")

Values = Callable[[dict[str, str], str], Sequence[object]]


def find(folder: Path) -> list[Path]:
    """The files of this format in a folder and below it: those with a header that has all that is needed."""
    return [path for path in find_files(folder, ".csv") if recognizes(path)]


def recognizes(path: Path) -> bool:
    """Whether a CSV file has columns for file name, class and box."""
    try:
        _Columns(path)
    except InputError:
        return False
    return True


class _Columns:
    """The columns of a CSV file that matter.

    Raises:
        InputError: one is not there.
    """

    def __init__(self, path: Path):
        lines = read_text(path).splitlines()
        delimiter = ";" if lines and lines[0].count(";") > lines[0].count(",") else ","
        rows = list(csv.reader(lines, delimiter=delimiter))
        header = [_plain(cell) for cell in rows[0]] if rows else []
        self.first_line = 2
        if _is_data(header):
            header, rows, self.first_line = list(NO_HEADER), [[], *rows], 1
        self.rows = [dict(zip(header, row, strict=False)) for row in rows[1:]]
        self.lengths = [len(row) for row in rows[1:]]
        self.width = len(header)
        self.file, self.label = (self._one(header, names, path) for names in (FILE, LABEL))
        self.split = next((name for name in SPLIT if name in header), "")
        self.box, self.has_corners = self._box(header, path)

    @staticmethod
    def _one(header: list[str], names: Sequence[str], path: Path) -> str:
        found = next((name for name in names if name in header), None)
        if found is None:
            raise InputError(f"{path} has no column for the {names[0]}; its columns are {some(header) or 'none'}")
        return found

    @staticmethod
    def _box(header: list[str], path: Path) -> tuple[tuple[str, ...], bool]:
        for names, is_corners in [*((n, True) for n in CORNERS), *((n, False) for n in SIZED)]:
            if set(names) <= set(header):
                return names, is_corners
        for name in LISTED:
            if name in header:
                return (name,), False
        raise InputError(f"{path} has no columns for the box, such as {', '.join(CORNERS[0])} or {', '.join(SIZED[0])}")


def _plain(cell: str) -> str:
    return "".join(c for c in cell.lower() if c not in " _-")


def _is_data(header: list[str]) -> bool:
    """Whether the first row is one of data already: a file name, four numbers or nothing, a class."""
    if len(header) != len(NO_HEADER) or "." not in header[0]:
        return False
    return all(cell.replace(".", "", 1).isdigit() for cell in header[1:5]) or not any(header[1:])


def read(files: list[Path], root: Path, pictures: Pictures) -> LabeledData:
    """Read files of this format. A row without box and class says that its picture shows no objects.

    Args:
        files: tables; each of a split, or with a column that says it.
        root: folder that the names of splits are looked for below.
        pictures: where the pictures are.

    Raises:
        InputError: a row is too short, has no class or no proper box, or its picture is not there or cannot be read.
    """
    data = LabeledData(NAME, {})
    for path in files:
        columns = _Columns(path)
        relative = _is_relative(columns)
        images: dict[str, dict[str, LabeledImage]] = defaultdict(dict)
        for i, row in enumerate(columns.rows):
            where = f"{path}, line {i + columns.first_line}"
            if not any(row.values()):
                continue
            if columns.lengths[i] != columns.width:
                raise InputError(f"{where} has {columns.lengths[i]} values for {columns.width} columns")
            name = row[columns.file]
            split = SPLIT_WORDS.get(row[columns.split].lower(), "") if columns.split else split_of(path, root)
            if name not in images[split]:
                file = pictures.named(name, where, path.parent)
                images[split][name] = LabeledImage(file, picture_size(file))
            image = images[split][name]
            if any(row[column].strip() for column in (*columns.box, columns.label)):
                image.boxes.append(_read_row(row, columns, image.size if relative else (1, 1), where))
        for split, found in images.items():
            data.splits.setdefault(split, []).extend(found.values())
        if relative:
            data.remarks[f"table(s) with boxes relative to the picture's size, such as {path.name}"] += 1
    return data


def _is_relative(columns: _Columns) -> bool:
    """Whether no coordinate of a table is beyond 1, which pixels are, and at least one is a fraction."""
    values = [row.get(column, "").strip() for row in columns.rows for column in columns.box]
    try:
        numbers = [float(value) for value in values if value]
    except ValueError:
        return False
    return bool(numbers) and 0 <= min(numbers) and max(numbers) <= 1 and any(x % 1 for x in numbers)


def _read_row(row: dict[str, str], columns: _Columns, scale: tuple[int, int], where: str) -> LabeledBox:
    values: Sequence[object] = [row[column] for column in columns.box]
    if len(columns.box) == 1:
        try:
            values = json.loads(str(values[0]))
        except ValueError:
            values = ()
        if not isinstance(values, list) or len(values) != 4:
            raise InputError(f"{where}: {brief(row[columns.box[0]])!r} is no box [x, y, width, height]")
    if not columns.has_corners:
        x, y, width, height = (number(value, where) for value in values)
        values = (x, y, x + width, y + height)
    return LabeledBox(class_name(row[columns.label], where), corners_to_box(values, where, scale))
