"""Data sets in the format of Pascal VOC: one XML file per image, one list of image ids per split."""

import os
import xml.etree.ElementTree as ET
from collections.abc import Sequence

from detectron2.data.catalog import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

__all__ = ["load_voc_instances", "register_pascal_voc", "CLASS_NAMES"]

CLASS_NAMES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


def _load_object(obj: ET.Element, class_names: Sequence[str], file_name: str) -> dict:
    name = obj.find("name").text
    if name not in class_names:
        raise ValueError(f"'{file_name}' has an object of class '{name}', which is not among {list(class_names)}.")
    xmin, ymin, xmax, ymax = (float(obj.find("bndbox").find(side).text) for side in ("xmin", "ymin", "xmax", "ymax"))
    return {
        "category_id": class_names.index(name),
        # VOC counts pixels from 1 and includes both ends; detectron2's boxes are half-open and start at 0.
        "bbox": [xmin - 1.0, ymin - 1.0, xmax, ymax],
        "bbox_mode": BoxMode.XYXY_ABS,
    }


def load_voc_instances(dirname: str, split: str, class_names: list[str] | tuple[str, ...]) -> list[dict]:
    """Load the images of one split with their boxes, in detectron2's standard format.

    Args:
        dirname: folder that contains "Annotations", "ImageSets" and "JPEGImages".
        split: name of a list in "ImageSets/Main": "train", "val", "test", "trainval", …
        class_names: names of the classes; an object's category_id is the position of its class.

    Raises:
        ValueError: an object is of a class that is not in `class_names`.
    """
    with PathManager.open(os.path.join(dirname, "ImageSets", "Main", split + ".txt")) as f:
        image_ids = f.read().split()
    annotation_dir = PathManager.get_local_path(os.path.join(dirname, "Annotations/"))
    dicts = []
    for image_id in image_ids:
        file_name = os.path.join(annotation_dir, image_id + ".xml")
        with PathManager.open(file_name) as f:
            tree = ET.parse(f)
        dicts.append(
            {
                "file_name": os.path.join(dirname, "JPEGImages", image_id + ".jpg"),
                "image_id": image_id,
                "height": int(tree.find("./size/height").text),
                "width": int(tree.find("./size/width").text),
                "annotations": [_load_object(obj, class_names, file_name) for obj in tree.findall("object")],
            }
        )
    return dicts


def register_pascal_voc(
    name: str, dirname: str, split: str, year: int, class_names: Sequence[str] = CLASS_NAMES
) -> None:
    """Register one split as data set `name`; `year` (2007 or 2012) chooses how average precision is computed."""
    DatasetCatalog.register(name, lambda: load_voc_instances(dirname, split, class_names))
    MetadataCatalog.get(name).set(thing_classes=list(class_names), dirname=dirname, year=year, split=split)
