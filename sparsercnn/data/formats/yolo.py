"""YOLO: a text file for each picture with lines "class cx cy width height", relative to the picture's size."""

from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from ...errors import InputError
from ..image_files import brief, some
from .labeled import (
    SPLITS,
    TRAIN,
    UNSPLIT,
    VAL,
    LabeledBox,
    LabeledData,
    LabeledImage,
    bounding_box,
    class_name,
    find_files,
    number,
    picture_size,
    read_text,
    split_of,
    whole,
)
from .pictures import SUFFIXES, Pictures

NAME = "YOLO"
YAML_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
# Files with one class name a line, as labeling programs and darknet write them.
NAME_LISTS = ("classes.txt", "obj.names", "_darknet.labels", "predefined_classes.txt")


def find(folder: Path) -> list[Path]:
    """The file that describes a data set of this format: a YAML file with `names`, or a list of class names."""
    candidates = [folder / name for name in YAML_NAMES] + sorted(folder.glob("*.yaml")) + sorted(folder.glob("*.yml"))
    for path in candidates:
        if path.is_file() and recognizes(path):
            return [path]
    return [path for name in NAME_LISTS for path in find_files(folder, name)][:1]


def lacks_names(folder: Path) -> bool:
    """Whether a folder has label files of this format, but nothing that says what the classes are called."""
    return any(path.parent.name == "labels" or "labels" in path.parts for path in find_files(folder, ".txt"))


def recognizes(path: Path) -> bool:
    """Whether a file describes a data set of this format: it is a list of classes, or names classes and splits."""
    if path.name in NAME_LISTS:
        return True
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return False
    return isinstance(content, dict) and "names" in content and bool({"train", "val", "test", "path"} & content.keys())


def read(files: list[Path], root: Path, pictures: Pictures) -> LabeledData:
    """Read a data set of this format. A picture without a text file shows no objects.

    Args:
        files: the one that describes it, see `find`.
        root: folder that the names of splits are looked for below.
        pictures: where the pictures are, if no YAML file says.

    Raises:
        InputError: a line is malformed, a class has no name, a folder is not there, or a picture cannot be read.
    """
    (description,) = files
    data = LabeledData(NAME, {})
    if description.suffix in (".yaml", ".yml"):
        content = _load(description)
        names = _names(content.get("names"), description)
        splits = {split: _pictures_of(content, split, description) for split in SPLITS}
    else:
        names = [class_name(line, str(description)) for line in read_text(description).splitlines() if line.strip()]
        splits = {}
        for path in pictures.paths:
            splits.setdefault(split_of(path, root), []).append(path)
    data.classes = set(names)
    splits = {split: paths for split, paths in splits.items() if paths}
    if not splits:
        raise InputError(f"{description} leads to no pictures")
    if splits.get(TRAIN) and splits.get(VAL) and set(splits[TRAIN]) == set(splits[VAL]):
        # Small examples are published so.
        data.remarks["split(s) left out: 'val' lists the pictures of 'train'"] += 1
        splits[UNSPLIT] = splits.pop(TRAIN)
        del splits[VAL]
    if list(splits) == [TRAIN]:
        splits = {UNSPLIT: splits[TRAIN]}
    without_labels = 0
    for split, paths in splits.items():
        labels = [label_file(path) for path in paths]
        without_labels += sum(not label.is_file() for label in labels)
        data.splits[split] = [_read_image(*pair, names, data.remarks) for pair in zip(paths, labels, strict=True)]
    if without_labels == sum(map(len, splits.values())):
        example = next(iter(splits.values()))[0]
        raise InputError(
            f"{description}: no picture has a label file; that of {example} would be {label_file(example)}"
        )
    if without_labels:
        data.remarks["picture(s) without a label file, which so show no objects"] = without_labels
    return data


def label_file(picture: Path) -> Path:
    """Where the labels of a picture are: "images" in its path is "labels" in theirs, or they lie beside it."""
    beside = picture.with_suffix(".txt")
    parts = list(beside.parts)
    if "images" not in parts[:-1] or beside.is_file():
        return beside
    parts[len(parts) - 2 - parts[-2::-1].index("images")] = "labels"
    return Path(*parts)


def _load(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise InputError(f"{path} is malformed YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} must be a mapping with names, train and val")
    return content


def _names(names: Any, path: Path) -> list[str]:
    if isinstance(names, dict):
        expected = list(range(len(names)))
        if sorted(names, key=str) != sorted(expected, key=str):
            raise InputError(f"{path}: the keys of names must be the numbers 0 to {len(names) - 1}")
        names = [names[i] for i in expected]
    if not isinstance(names, list) or not names:
        raise InputError(f"{path}: names must be a list of class names, or a mapping of numbers to names")
    return [class_name(name, f"{path}: name of class {i}") for i, name in enumerate(names)]


def _pictures_of(content: dict[str, Any], split: str, description: Path) -> list[Path]:
    places = content.get(split) or []
    paths: list[Path] = []
    for place in places if isinstance(places, list) else [places]:
        found = _place(str(place), content.get("path"), description, split)
        if found.is_dir():
            paths += [path for path in sorted(found.rglob("*")) if path.suffix.lower() in SUFFIXES]
            continue
        for line in filter(None, map(str.strip, read_text(found).splitlines())):
            listed = next((p for p in (found.parent / line, description.parent / line) if p.is_file()), None)
            if listed is None:
                raise InputError(f"{found} lists {brief(line)}, which is not there")
            paths.append(listed)
    return paths


def _place(place: str, base: object, description: Path, split: str) -> Path:
    """The folder or list of a split. Its beginning may be that of another machine, or lead a folder too high."""
    here = description.parent
    bases = [here / str(base), here] if base else [here]
    shorter = place.removeprefix("../").removeprefix("./")
    candidates = [folder / name for folder in bases for name in (shorter, place, f"{shorter}/images")]
    tail = Path(place).parts
    candidates += [here.joinpath(*tail[-count:]) for count in (3, 2, 1) if len(tail) > count]
    for path in candidates:
        if path.is_dir() or path.is_file():
            return path.resolve()
    raise InputError(f"{description}: '{split}' is {brief(place)}, which is not there, nor below {here}")


def _read_image(picture: Path, labels: Path, names: list[str], remarks: Counter[str]) -> LabeledImage:
    image = LabeledImage(picture, picture_size(picture))
    if not labels.is_file():
        return image
    for i, line in enumerate(read_text(labels).splitlines(), 1):
        if values := line.split():
            image.boxes.append(_read_line(values, f"{labels}, line {i}", names, image.size, remarks))
    return image


def _read_line(
    values: list[str], where: str, names: list[str], size: tuple[int, int], remarks: Counter[str]
) -> LabeledBox:
    index = whole(values[0], where)
    if not 0 <= index < len(names):
        raise InputError(f"{where}: class {index}, but there are names for 0 to {len(names) - 1}: {some(names)}")
    numbers = [number(value, where) for value in values[1:]]
    if len(numbers) >= 6 and len(numbers) % 2 == 0:
        remarks["polygon(s) that became their bounding boxes"] += 1
        points = list(zip(numbers[::2], numbers[1::2], strict=True))
        return LabeledBox(names[index], bounding_box(points, where, size))
    if len(numbers) not in (4, 5):
        raise InputError(f"{where}: {len(values)} values, where a box has 5: class, center x, center y, width, height")
    if len(numbers) == 5:
        remarks["confidence(s) after a box left out"] += 1
    cx, cy, width, height = numbers[:4]
    if min(width, height) < 0:
        raise InputError(f"{where}: width or height is negative")
    if max(numbers[:4]) > 2:  # boxes may overhang a little; pixels are far beyond
        raise InputError(f"{where}: {max(numbers[:4]):g} is no part of the picture's size; YOLO's numbers are 0 to 1")
    x, y = (cx - width / 2) * size[0], (cy - height / 2) * size[1]
    return LabeledBox(names[index], (x, y, width * size[0], height * size[1]))
