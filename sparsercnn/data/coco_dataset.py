"""Large data sets in COCO format: `load_coco_json`'s dicts, made one by one when they are asked for."""

import contextlib
import fcntl
import glob
import logging
import mmap
import os
import shutil
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.build import print_instances_class_histogram
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

from ..errors import InputError
from ..files import PARTIAL, file_digest
from .coco_columns import ABSENT, VERSION, Columns, load_columns, save_columns
from .coco_reader import read_columns
from .content import Content

# Bytes of an annotation file from which on it is read into columns. Smaller ones take Python seconds, and at most a
# gigabyte.
LARGE = 100 << 20
SUFFIX = ".columns"

logger = logging.getLogger(__name__)


class CocoDataset(Sequence[dict]):
    """The images of a COCO file as dicts in detectron2's standard format, equal to those of `load_coco_json`.

    Masks and keypoints are left out. Copies of this object, in other processes too, share the memory of `columns` if
    that is mapped from files.

    Args:
        columns: the file.
        folder: that `columns` was loaded from.
        image_root: folder that the file names are relative to.
        images: (n,) places of the images that this data set has, ascending; None for all.
    """

    def __init__(self, columns: Columns, folder: str, image_root: str, images: np.ndarray | None = None):
        self.columns = columns
        self.folder = folder
        self.image_root = image_root
        self.images = np.arange(len(columns.ids)) if images is None else images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict:  # type: ignore[override]  # no slices, as in torch's data sets
        columns, image = self.columns, int(self.images[index])
        return {
            "file_name": os.path.join(self.image_root, columns.file_name(image)),
            "height": int(columns.heights[image]),
            "width": int(columns.widths[image]),
            "image_id": columns.ids[image].item(),
            "annotations": self._annotations(columns.annotations(image)),
        }

    def _annotations(self, where: slice) -> list[dict]:
        columns = self.columns
        rows = (columns.iscrowd[where], columns.boxes[where], columns.integers[where], columns.classes[where])
        annotations = []
        for iscrowd, box, integers, category in zip(*(column.tolist() for column in rows), strict=True):
            annotation: dict[str, Any] = {} if iscrowd == ABSENT else {"iscrowd": iscrowd}
            annotation["bbox"] = list(map(int, box)) if integers else box
            annotation["category_id"] = category
            annotation["bbox_mode"] = BoxMode.XYWH_ABS
            annotations.append(annotation)
        return annotations

    def with_objects(self) -> "CocoDataset":
        """The same data set without the images that have no annotation, or only crowds."""
        return CocoDataset(self.columns, self.folder, self.image_root, self.columns.with_objects())

    def is_wide(self) -> np.ndarray:
        """(n,) bool: which images are wider than high."""
        return self.columns.widths[self.images] > self.columns.heights[self.images]

    def class_counts(self) -> np.ndarray:
        """(K,) int64: how many annotations of all images, crowds apart, each class has."""
        classes = self.columns.classes[self.columns.iscrowd != 1]
        return np.bincount(classes, minlength=len(self.columns.about.category_ids))

    def __reduce__(self) -> tuple:
        # A memory map would travel to another process as the gigabytes that it maps.
        return _reopen, (self.folder, self.image_root, self.images)


def _reopen(folder: str, image_root: str, images: np.ndarray) -> CocoDataset:
    return CocoDataset(load_columns(folder), folder, image_root, images)


def is_large(name: str) -> bool:
    """Whether a registered data set is a COCO file of at least `LARGE` bytes, and nothing else than that."""
    file = MetadataCatalog.get(name).get("json_file")
    # Whoever registers another function adds something of their own to the dicts.
    plain = getattr(DatasetCatalog[name], "__qualname__", "").startswith("register_coco_instances.")
    return bool(file) and plain and os.path.isfile(file) and os.path.getsize(file) >= LARGE


def open_coco_dataset(name: str, cache: str) -> CocoDataset:
    """Open a registered data set in COCO format by its columns, and enter its classes in its metadata.

    Args:
        name: of the data set.
        cache: folder for the columns if that of the annotation file cannot be written to.

    Raises:
        InputError: see `open_columns`.
    """
    metadata = MetadataCatalog.get(name)
    columns, folder = open_columns(metadata.json_file, cache)
    about = columns.about
    metadata.thing_classes = about.category_names
    metadata.thing_dataset_id_to_contiguous_id = {category: i for i, category in enumerate(about.category_ids)}
    return CocoDataset(columns, folder, metadata.image_root)


def open_for_training(name: str, cache: str, filter_empty: bool) -> CocoDataset:
    """Open a registered data set as `open_coco_dataset` does, and log what `get_detection_dataset_dicts` would.

    Args:
        name, cache: as for `open_coco_dataset`.
        filter_empty: leave out images without annotations or with crowds only.
    """
    dataset = open_coco_dataset(name, cache)
    total = len(dataset)
    if filter_empty:
        dataset = dataset.with_objects()
        logger.info(f"Removed {total - len(dataset)} images with no usable annotations. {len(dataset)} images left.")
    # All annotations of a class may be the same one here, where only their number counts.
    counts = enumerate(dataset.class_counts().tolist())
    by_class = [{"annotations": [{"category_id": category}] * count} for category, count in counts]
    print_instances_class_histogram(by_class, dataset.columns.about.category_names)
    return dataset


def check_large(name: str, cache: str, evaluated: bool) -> Content:
    """Check a large data set as `check_coco_json` checks a small one.

    Args:
        name, cache: as for `open_coco_dataset`.
        evaluated: it must also have what the COCO metrics need.

    Raises:
        InputError: the first mistake.
    """
    path = MetadataCatalog.get(name).json_file
    columns, _ = open_columns(path, cache)
    if evaluated and columns.about.not_evaluated:
        raise InputError(columns.about.not_evaluated)
    return columns.content(path)


def open_columns(path: str, cache: str) -> tuple[Columns, str]:
    """The columns of an annotation file, and the folder they are in: `PATH.columns`, made where it is not there yet.

    They belong to the file's content: if that changes they are made anew.

    Args:
        path: of the annotation file.
        cache: folder for them if that of the annotation file cannot be written to.

    Raises:
        InputError: the file cannot be read or is no valid COCO file, or the columns cannot be written.
    """
    path = PathManager.get_local_path(path)
    beside, name = os.path.split(os.path.abspath(path))
    folder = os.path.join(beside if os.access(beside, os.W_OK) else cache, name + SUFFIX)
    try:
        with open(path, "rb") as file:
            digest = file_digest(file)
            with _one_process_at_a_time(file):
                columns = _load_if_current(folder, digest) or _make(file, path, folder, digest)
    except OSError as error:
        raise InputError(f"the columns of {path} cannot be made: {error.strerror}: {error.filename}") from error
    return columns, folder


@contextlib.contextmanager
def _one_process_at_a_time(file: BinaryIO) -> Iterator[None]:
    """The kernel ends the lock when the process ends, however it does. Some network file systems have none."""
    with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_UN)


def _load_if_current(folder: str, digest: str) -> Columns | None:
    try:
        columns = load_columns(folder)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return columns if columns.about.digest == digest and columns.about.version == VERSION else None


def _make(file: BinaryIO, path: str, folder: str, digest: str) -> Columns:
    logger.info(f"Reading {path} ({os.path.getsize(path) / 1e9:.1f} GB) into {folder}, once ...")
    columns = read_columns(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), path, digest)
    for stray in glob.glob(f"{glob.escape(folder)}.*{PARTIAL}"):
        shutil.rmtree(stray, ignore_errors=True)
    partial = f"{folder}.{os.getpid()}{PARTIAL}"
    try:
        os.makedirs(os.path.dirname(folder), exist_ok=True)
        save_columns(columns, partial)
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(partial, folder)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return load_columns(folder)
