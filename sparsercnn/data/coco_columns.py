"""A COCO file as columns of numbers, in files that all processes of all runs map into their memory.

30 million boxes take 1.3 GB so, once on a machine and not once for each process that loads images.
"""

import json
import os
from dataclasses import asdict, dataclass, field, fields

import numpy as np

from .content import Content, Tally

VERSION = 1
"""Of how columns are laid out."""
ABSENT = -1
"""In `Columns.iscrowd`: the annotation does not say."""
_ABOUT = "about.json"


@dataclass
class About:
    """What is known of a COCO file besides its columns.

    Attributes:
        digest: SHA-256 of the file, in hexadecimal digits.
        category_ids: of all categories, ascending.
        category_names: in the same order.
        tally: counts of its annotations.
        not_evaluated: why the COCO metrics cannot be computed on it, as a message; empty if they can.
        version: of the program that made the columns.
    """

    digest: str
    category_ids: list[int]
    category_names: list[str]
    tally: Tally = field(default_factory=Tally)
    not_evaluated: str = ""
    version: int = VERSION


@dataclass
class Columns:
    """The images of a COCO file in the order of their ids, and their annotations, of each image in the file's order.

    Attributes:
        about: the rest.
        ids: (N,) int64 or text.
        heights, widths: (N,) int64 pixels.
        names: (bytes,) uint8, the file names in UTF-8, one after another.
        name_ends: (N,) int64, where each name ends in `names`.
        ends: (N,) int64, where the annotations of each image end in the columns below.
        boxes: (M, 4) float64 xywh, absolute.
        integers: (M,) bool, the box holds integers in the file: detectron2 calculates with those as such.
        classes: (M,) int32 0…K-1, place of the category's id among all.
        iscrowd: (M,) int8 0, 1 or `ABSENT`.
    """

    about: About
    ids: np.ndarray
    heights: np.ndarray
    widths: np.ndarray
    names: np.ndarray
    name_ends: np.ndarray
    ends: np.ndarray
    boxes: np.ndarray
    integers: np.ndarray
    classes: np.ndarray
    iscrowd: np.ndarray

    def file_name(self, image: int) -> str:
        """The file name of an image, by its place among all."""
        start = self.name_ends[image - 1] if image else 0
        return self.names[start : self.name_ends[image]].tobytes().decode()

    def annotations(self, image: int) -> slice:
        """Where the annotations of an image are, by its place among all."""
        return slice(int(self.ends[image - 1]) if image else 0, int(self.ends[image]))

    def with_objects(self) -> np.ndarray:
        """(n,) int64, ascending: the images that have an annotation which is no crowd."""
        objects = np.concatenate([[0], np.cumsum(self.iscrowd != 1)])[np.concatenate([[0], self.ends])]
        return np.flatnonzero(np.diff(objects))

    def content(self, source: str) -> Content:
        """The same as `check_coco_json` returns it, with images in the order of their ids."""
        files = [self.file_name(i) for i in range(len(self.ids))]
        sizes = list(zip(self.widths.tolist(), self.heights.tolist(), strict=True))
        negatives = len(self.ids) - len(self.with_objects())
        return Content(source, files, self.ids.tolist(), sizes, self.about.category_names, self.about.tally, negatives)


_COLUMNS = [column.name for column in fields(Columns) if column.name != "about"]


def save_columns(columns: Columns, folder: str) -> None:
    """Write columns to the files of a new folder."""
    os.makedirs(folder)
    for name in _COLUMNS:
        with open(os.path.join(folder, f"{name}.npy"), "wb") as file:
            np.save(file, getattr(columns, name), allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
    with open(os.path.join(folder, _ABOUT), "w") as about:
        json.dump(asdict(columns.about), about)


def load_columns(folder: str) -> Columns:
    """Map the files of a folder that `save_columns` wrote, read-only, into memory.

    Raises:
        OSError, ValueError, TypeError, KeyError: they are not there, or are none.
    """
    with open(os.path.join(folder, _ABOUT)) as file:
        about = json.load(file)
    about["tally"] = Tally(**about["tally"])
    # Views of the maps: an element of a `memmap` takes several times as long to get.
    arrays = {name: np.asarray(np.load(os.path.join(folder, f"{name}.npy"), mmap_mode="r")) for name in _COLUMNS}
    return Columns(About(**about), **arrays)
