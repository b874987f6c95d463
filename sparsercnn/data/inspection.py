"""What registered data sets hold, image by image, and what is odd about it; for `tools/check_dataset.py`."""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from ..errors import InputError
from .duplicates import near_duplicates, picture_hash
from .image_files import READING_THREADS
from .images import read_image

# Two boxes of a class in one image that overlap more are the same object, labeled twice.
SAME_OBJECT_IOU = 0.95
# Pixels that boxes may overhang their image: formats round and count pixels in different ways.
OVERHANG = 1.5


@dataclass
class Oddity:
    """Something about an image that is likely a mistake.

    Attributes:
        kind: in a few words, the same for all of a kind.
        file: of the image.
        detail: what exactly.
    """

    kind: str
    file: str
    detail: str


@dataclass
class Inspection:
    """A data set, as it was found.

    Attributes:
        name: under which it is registered.
        classes: names in the order of the model's outputs.
        records: its images in detectron2's format.
        counts: objects of each class, crowds left out.
        images_of: images with an object of each class.
        crowds: regions of many objects.
        hashes: (8,) `picture_hash` of each image that can be read, by its place among the records.
        oddities: what is likely wrong.
    """

    name: str
    classes: list[str]
    records: list[dict]
    counts: Counter[str] = field(default_factory=Counter)
    images_of: Counter[str] = field(default_factory=Counter)
    crowds: int = 0
    hashes: dict[int, np.ndarray] = field(default_factory=dict)
    oddities: list[Oddity] = field(default_factory=list)

    @property
    def objects_per_image(self) -> list[int]:
        """How many objects each image shows, crowds left out."""
        return [sum(not a.get("iscrowd") for a in record.get("annotations", ())) for record in self.records]

    @property
    def negatives(self) -> int:
        """How many images show no objects."""
        return self.objects_per_image.count(0)


def inspect_dataset(name: str, max_pixels: int) -> Inspection:
    """Read all images and annotations of a registered data set, whose annotation file must be valid.

    Args:
        name: of the data set.
        max_pixels: an image of more counts as unreadable.
    """
    records = DatasetCatalog.get(name)
    found = Inspection(name, list(MetadataCatalog.get(name).get("thing_classes", [])), records)
    for record in records:
        _inspect_annotations(record, found)

    def look(record: dict) -> np.ndarray | InputError:
        try:
            picture = read_image(record["file_name"], "RGB", max_pixels)
        except InputError as error:
            return error
        size = (record.get("width"), record.get("height"))
        if size != (None, None) and size != picture.shape[1::-1]:
            return InputError(f"has {picture.shape[1]}×{picture.shape[0]} pixels, annotated as {size[0]}×{size[1]}")
        return picture_hash(picture)

    with ThreadPoolExecutor(READING_THREADS) as pool:
        for i, result in enumerate(pool.map(look, records)):
            if isinstance(result, InputError):
                found.oddities.append(Oddity("unreadable image", records[i]["file_name"], str(result)))
            else:
                found.hashes[i] = result
    return found


def find_copies(inspections: Sequence[Inspection]) -> Iterator[tuple[tuple[str, str], tuple[str, str]]]:
    """Pairs of images of these data sets that are nearly the same: (data set, file) of each of the two.

    Data sets that share an image file, which is registered under several names, are no leak and not compared.
    """
    places = [(x.name, x.records[i]["file_name"], h) for x in inspections for i, h in x.hashes.items()]
    if not places:
        return
    for i, j in near_duplicates(np.stack([h for _, _, h in places])).tolist():
        (first, file, _), (second, other, _) = places[i], places[j]
        if file != other:
            yield (first, file), (second, other)


def _inspect_annotations(record: dict, found: Inspection) -> None:
    objects = []
    for annotation in record.get("annotations", ()):
        box = BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYXY_ABS)
        category = found.classes[annotation["category_id"]]
        if annotation.get("iscrowd"):
            found.crowds += 1
            continue
        objects.append((category, box))
        if kind := _odd_box(box, record):
            detail = f"{category} at " + ", ".join(f"{side:g}" for side in box)
            found.oddities.append(Oddity(kind, record["file_name"], detail))
    found.counts.update(category for category, _ in objects)
    found.images_of.update({category for category, _ in objects})
    for (category, box), (other, again) in _pairs(objects):
        if category == other and _iou(box, again) > SAME_OBJECT_IOU:
            found.oddities.append(Oddity("object labeled twice", record["file_name"], category))


def _odd_box(box: Sequence[float], record: dict) -> str:
    x0, y0, x1, y1 = box
    width, height = record.get("width", np.inf), record.get("height", np.inf)
    if not (x1 > x0 and y1 > y0):
        return "box without area"
    if x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0:
        return "box outside of its image"
    if min(x0, y0) < -OVERHANG or x1 > width + OVERHANG or y1 > height + OVERHANG:
        return "box that overhangs its image"
    return ""


def _pairs(objects: list) -> Iterator[tuple]:
    """Pairs of objects that begin at nearly the same place, without looking at all pairs."""
    objects = sorted(objects, key=lambda entry: entry[1][0])
    for i, first in enumerate(objects):
        for second in objects[i + 1 :]:
            if second[1][0] - first[1][0] > max(1.0, 0.05 * (first[1][2] - first[1][0])):
                break
            yield first, second


def _iou(first: Sequence[float], second: Sequence[float]) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(0.0, width) * max(0.0, height)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return shared / max(sum(areas) - shared, 1e-9)
