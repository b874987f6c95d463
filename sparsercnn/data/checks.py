"""Checks of data sets before training starts: a mistake in an annotation file should cost seconds, not a night."""

import json
import math
import os
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager

from ..architectures import num_classes, num_classes_key
from ..errors import InputError, did_you_mean
from .images import read_image

NAMES_SHOWN = 5
# Images of a data set that are decoded: all of a small one, a sample of a large one, where all would take minutes.
IMAGES_READ = 500
# Larger coordinates are no pixels, and overflow single precision further on.
LARGEST_COORDINATE = 1e6


def check_datasets(cfg: CfgNode, train: bool = True) -> None:
    """Check the data sets of `DATASETS.TEST`, and of `DATASETS.TRAIN` if `train`.

    They must be registered, their annotations valid, their images on disk and readable, and their number of classes
    that of the model.

    Raises:
        InputError: the first mistake, with the file and what to do.
    """
    if train and not cfg.DATASETS.TRAIN:
        raise InputError("DATASETS.TRAIN is empty: name at least one data set to train on")
    if not train and not cfg.DATASETS.TEST:
        raise InputError("DATASETS.TEST is empty: name at least one data set to evaluate on")
    train_names = tuple(cfg.DATASETS.TRAIN) if train else ()
    for name in dict.fromkeys(train_names + tuple(cfg.DATASETS.TEST)):
        _check_registered(name)
        metadata = MetadataCatalog.get(name)
        if metadata.get("json_file"):
            files, classes = check_coco_json(metadata.json_file, name, to_evaluate=name in cfg.DATASETS.TEST)
            files = [os.path.join(metadata.get("image_root") or "", file) for file in files]
        else:
            files = [image["file_name"] for image in _load(name)]
            classes = metadata.get("thing_classes", [])
        _check_files_exist(files, name)
        _check_readable(files)
        expected = num_classes(cfg)
        if expected is not None and len(classes) != expected:
            raise InputError(
                f"data set {name} has {len(classes)} categories ({_some(classes)}), but {num_classes_key(cfg)} is "
                f"{expected}; set it to {len(classes)}"
            )


def _check_registered(name: str) -> None:
    names = DatasetCatalog.list()
    if name in names:
        return
    raise InputError(
        f"data set {name} is not registered{did_you_mean(name, names)} (coco128 and bccd are registered when found "
        f"under DETECTRON2_DATASETS, {_root()}, your own by DATASETS.COCO_JSON in the config: see datasets/README.md)"
    )


def _root() -> str:
    return os.path.abspath(os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets")))


def _load(name: str) -> list[dict]:
    try:
        return DatasetCatalog.get(name)
    except (OSError, ValueError, KeyError, SyntaxError) as error:
        raise InputError(f"data set {name} cannot be loaded: {type(error).__name__}: {error}") from error


def check_coco_json(path: str, name: str, to_evaluate: bool = False) -> tuple[list[str], list[str]]:
    """Check an annotation file in COCO format.

    Args:
        path: the file.
        name: of the data set, for the message.
        to_evaluate: it must also have what the COCO metrics need: `area` and `iscrowd` of each annotation.

    Returns:
        File names of the images and names of the categories.

    Raises:
        InputError: the file is missing, no JSON, or not in COCO format.
    """
    data = _read_json(path, name)
    if not isinstance(data, dict):
        raise InputError(f"{path} is not in COCO format: it holds a {type(data).__name__}, not an object")
    for key in ("images", "annotations", "categories"):
        if not isinstance(data.get(key), list) or not all(isinstance(entry, dict) for entry in data[key]):
            raise InputError(f"{path} is not in COCO format: '{key}' must be a list of objects")
    check = _EntryCheck(path)
    for category in data["categories"]:
        check.keys("category", category, id=int, name=str)
    for image in data["images"]:
        check.keys("image", image, id=(int, str), file_name=str, height=int, width=int)
    categories = check.unique_ids("category", data["categories"])
    images = check.unique_ids("image", data["images"])
    for annotation in data["annotations"]:
        check.annotation(annotation, images, categories, to_evaluate)
    check.unique_ids("annotation", data["annotations"])
    if not images:
        raise InputError(f"{path} lists no images")
    return [image["file_name"] for image in data["images"]], [c["name"] for c in data["categories"]]


def _read_json(path: str, name: str) -> Any:
    path = PathManager.get_local_path(path)
    if not os.path.isfile(path):
        make = "; make it with: python datasets/prepare_shapes.py" if name.startswith("shapes_") else ""
        raise InputError(
            f"data set {name}: there is no file {path} (DETECTRON2_DATASETS is {_root()}; see datasets/README.md){make}"
        )
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}") from error


class _EntryCheck:
    """Checks entries of one annotation file; the messages name the file and the entry."""

    def __init__(self, path: str):
        self.path = path

    def fail(self, kind: str, entry: dict, problem: str) -> InputError:
        return InputError(f"{self.path}: {kind} {entry.get('id', '')!r} {problem}")

    def keys(self, kind: str, entry: dict, **types: type | tuple) -> None:
        for key, kinds in types.items():
            value = entry.get(key)
            if isinstance(value, bool) or not isinstance(value, kinds):
                found = f"has {key} {value!r}" if key in entry else f"has no '{key}'"
                names = " or ".join(k.__name__ for k in (kinds if isinstance(kinds, tuple) else (kinds,)))
                raise self.fail(kind, entry, f"{found}; it must be of type {names}")

    def unique_ids(self, kind: str, entries: Iterable[dict]) -> set:
        seen: set = set()
        for entry in entries:
            if entry["id"] in seen:
                raise self.fail(kind, entry, "stands in the file twice: ids must be unique")
            seen.add(entry["id"])
        return seen

    def annotation(self, entry: dict, images: set, categories: set, to_evaluate: bool) -> None:
        self.keys("annotation", entry, id=int, image_id=(int, str), category_id=int)
        if to_evaluate:
            self.keys("annotation", entry, area=(int, float), iscrowd=int)
        if entry["image_id"] not in images:
            raise self.fail("annotation", entry, f"is of image {entry['image_id']!r}, which the file does not list")
        if entry["category_id"] not in categories:
            raise self.fail("annotation", entry, f"has category {entry['category_id']}, which the file does not list")
        box = entry.get("bbox")
        if not isinstance(box, list) or len(box) != 4 or not all(_is_coordinate(x) for x in box):
            raise self.fail(
                "annotation", entry, f"has bbox {box!r}; it must be 4 numbers of pixels: x, y, width, height"
            )
        if box[2] < 0 or box[3] < 0:
            raise self.fail("annotation", entry, f"has bbox {box}, whose width or height is negative")


def _is_coordinate(x: object) -> bool:
    if isinstance(x, bool) or not isinstance(x, (int, float)):
        return False
    return math.isfinite(x) and abs(x) <= LARGEST_COORDINATE


def _check_files_exist(files: list[str], name: str) -> None:
    by_folder = defaultdict(list)
    for file in files:
        by_folder[os.path.dirname(file)].append(file)
    for folder, members in by_folder.items():
        if not os.path.isdir(folder or "."):
            raise InputError(f"data set {name}: there is no image folder {folder}")
        # One listing is much faster than asking for every file.
        present = set(os.listdir(folder or "."))
        missing = [file for file in members if os.path.basename(file) not in present]
        if missing:
            raise InputError(f"data set {name}: {len(missing)} of {len(files)} images are missing: {_some(missing)}")


def _check_readable(files: list[str]) -> None:
    sample = files[:: math.ceil(len(files) / IMAGES_READ) or 1]
    with ThreadPoolExecutor() as pool:
        for _ in pool.map(lambda file: read_image(file, "RGB"), sample):
            pass


def _some(names: list[str]) -> str:
    return ", ".join(map(str, names[:NAMES_SHOWN])) + (", …" if len(names) > NAMES_SHOWN else "")
