"""Data sets in COCO's JSON format: loading, registering, and writing any registered data set in it."""

import contextlib
import datetime
import io
import json
import logging
import os
import shutil

import numpy as np
import pycocotools.mask as mask_util
from fvcore.common.timer import Timer
from iopath.common.file_io import file_lock
from pycocotools.coco import COCO

from detectron2.data.catalog import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

logger = logging.getLogger(__name__)

__all__ = ["load_coco_json", "convert_to_coco_json", "register_coco_instances"]


def _read_json(json_file: str) -> COCO:
    timer = Timer()
    json_file = PathManager.get_local_path(json_file)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(json_file)
    if timer.seconds() > 1:
        logger.info(f"Loading {json_file} takes {timer.seconds():.2f} seconds.")
    return coco


def _set_categories(coco: COCO, dataset_name: str) -> dict[int, int]:
    """Write the class names into the metadata; return the map from the file's category ids to 0…K-1."""
    ids = sorted(coco.getCatIds())
    meta = MetadataCatalog.get(dataset_name)
    meta.thing_classes = [category["name"] for category in coco.loadCats(ids)]
    if "coco" not in dataset_name and not (min(ids) == 1 and max(ids) == len(ids)):
        logger.warning("\nCategory ids in annotations are not in [1, #categories]! We'll apply a mapping for you.\n")
    meta.thing_dataset_id_to_contiguous_id = {id: i for i, id in enumerate(ids)}
    return meta.thing_dataset_id_to_contiguous_id


def _check_annotation_ids(coco: COCO, images: list[dict], json_file: str) -> None:
    total = len(coco.anns)
    in_images = [annotation["id"] for image in images for annotation in coco.imgToAnns[image["id"]]]
    if len(in_images) < total:
        logger.warning(
            f"{json_file} contains {total} annotations, but only {len(in_images)} of them match to images in the file."
        )
    # COCO's own 2014 minival file has such duplicates and is evaluated on nevertheless.
    if "minival" not in json_file:
        assert len(set(in_images)) == len(in_images), f"Annotation ids in '{json_file}' are not unique!"


def _load_annotation(annotation: dict, keys: list[str], id_map: dict[int, int] | None) -> dict:
    assert annotation.get("ignore", 0) == 0, '"ignore" in COCO json file is not supported.'
    obj = {key: annotation[key] for key in keys if key in annotation}
    if "bbox" in obj and len(obj["bbox"]) == 0:
        raise ValueError(
            f"One annotation of image {annotation['image_id']} contains empty 'bbox' value! "
            "This json does not have valid COCO format."
        )
    obj["bbox_mode"] = BoxMode.XYWH_ABS
    if id_map is not None:
        if obj["category_id"] not in id_map:
            raise KeyError(
                f"Encountered category_id={obj['category_id']} but this id does not exist "
                "in 'categories' of the json file."
            )
        obj["category_id"] = id_map[obj["category_id"]]
    return obj


def load_coco_json(
    json_file: str, image_root: str, dataset_name: str | None = None, extra_annotation_keys: list[str] | None = None
) -> list[dict]:
    """Load a COCO JSON file with instance annotations, in detectron2's standard format.

    Of each annotation the keys "iscrowd", "bbox" (xywh, absolute) and "category_id" are kept; masks and keypoints
    are not, unless `extra_annotation_keys` names them.

    Args:
        json_file: the annotations.
        image_root: folder that the file names in `json_file` are relative to.
        dataset_name: if given, its metadata receives "thing_classes" and "thing_dataset_id_to_contiguous_id", and
            category ids are mapped to 0…K-1 in the order of the original ids. Otherwise ids stay as they are.
        extra_annotation_keys: further keys to copy from each annotation.

    Raises:
        AssertionError: two annotations have the same id, or one has a non-zero "ignore".
        ValueError: an empty "bbox".
        KeyError: a category id that "categories" does not list.
    """
    coco = _read_json(json_file)
    id_map = None if dataset_name is None else _set_categories(coco, dataset_name)
    images = coco.loadImgs(sorted(coco.imgs))
    _check_annotation_ids(coco, images, json_file)
    logger.info(f"Loaded {len(images)} images in COCO format from {json_file}")

    keys = ["iscrowd", "bbox", "category_id", *(extra_annotation_keys or [])]
    return [
        {
            "file_name": os.path.join(image_root, image["file_name"]),
            "height": image["height"],
            "width": image["width"],
            "image_id": image["id"],
            "annotations": [_load_annotation(annotation, keys, id_map) for annotation in coco.imgToAnns[image["id"]]],
        }
        for image in images
    ]


def register_coco_instances(name: str, metadata: dict, json_file: str, image_root: str) -> None:
    """Register a COCO-format data set for detection.

    Args:
        name: the name to register, for example "coco_2017_train".
        metadata: further metadata, {} for none.
        json_file: the annotations.
        image_root: folder with the images.
    """
    assert isinstance(name, str), name
    assert isinstance(json_file, str | os.PathLike), json_file
    assert isinstance(image_root, str | os.PathLike), image_root
    DatasetCatalog.register(name, lambda: load_coco_json(json_file, image_root, name))
    MetadataCatalog.get(name).set(json_file=json_file, image_root=image_root, evaluator_type="coco", **metadata)


def _polygon_area(polygon: list[float]) -> float:
    x, y = np.asarray(polygon, dtype=np.float64).reshape(-1, 2).T
    return 0.5 * abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))


def _area(annotation: dict, width: float, height: float) -> float:
    """Area of the object's mask where there is one, else of its box: COCO's small/medium/large go by it."""
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, list) and segmentation:
        return float(sum(_polygon_area(polygon) for polygon in segmentation))
    if isinstance(segmentation, dict):
        return float(mask_util.area(segmentation))
    return float(width * height)


def _to_coco_annotation(annotation: dict) -> dict:
    bbox = annotation["bbox"]
    if isinstance(bbox, np.ndarray):
        if bbox.ndim != 1:
            raise ValueError(f"bbox has to be 1-dimensional. Got shape={bbox.shape}.")
        bbox = bbox.tolist()
    if len(bbox) != 4:
        raise ValueError(f"bbox has to has length 4. Got {bbox}.")
    bbox = BoxMode.convert(bbox, annotation["bbox_mode"], BoxMode.XYWH_ABS)
    return {
        "bbox": [round(float(x), 3) for x in bbox],
        "area": _area(annotation, *bbox[2:]),
        "iscrowd": int(annotation.get("iscrowd", 0)),
    }


def convert_to_coco_dict(dataset_name: str) -> dict:
    """A registered data set as the dict that COCO's JSON files hold: "info", "images", "categories", "annotations".

    Category ids become the original ones where the metadata has "thing_dataset_id_to_contiguous_id".
    Masks are not written, but where there are any the "area" is theirs.
    """
    dataset_dicts = DatasetCatalog.get(dataset_name)
    metadata = MetadataCatalog.get(dataset_name)
    id_map = metadata.get("thing_dataset_id_to_contiguous_id", {})
    original_id = {contiguous: original for original, contiguous in id_map.items()}

    logger.info("Converting dataset dicts into COCO format")
    images, annotations = [], []
    for position, record in enumerate(dataset_dicts):
        image_id = record.get("image_id", position)
        images.append(
            {
                "id": image_id,
                "width": int(record["width"]),
                "height": int(record["height"]),
                "file_name": str(record["file_name"]),
            }
        )
        for annotation in record.get("annotations", []):
            category_id = int(annotation["category_id"])
            # COCO's evaluation treats annotation 0 as no match, so ids start at 1.
            ids = {"id": len(annotations) + 1, "image_id": image_id}
            ids["category_id"] = int(original_id.get(category_id, category_id))
            annotations.append(ids | _to_coco_annotation(annotation))
    logger.info(f"Conversion finished, #images: {len(images)}, #annotations: {len(annotations)}")

    coco_dict = {
        "info": {
            "date_created": str(datetime.datetime.now()),
            "description": "Automatically generated COCO json file for Detectron2.",
        },
        "images": images,
        "categories": [{"id": original_id.get(i, i), "name": name} for i, name in enumerate(metadata.thing_classes)],
        "licenses": None,
    }
    if annotations:
        coco_dict["annotations"] = annotations
    return coco_dict


def convert_to_coco_json(dataset_name: str, output_file: str, allow_cached: bool = True) -> None:
    """Write a registered data set as a COCO JSON file.

    Args:
        dataset_name: a name in `DatasetCatalog`.
        output_file: where to write.
        allow_cached: leave `output_file` as it is when it exists already.
    """
    PathManager.mkdirs(os.path.dirname(output_file))
    with file_lock(output_file):
        if PathManager.exists(output_file) and allow_cached:
            logger.warning(
                f"Using previously cached COCO format annotations at '{output_file}'. "
                "You need to clear the cache file if your dataset has been modified."
            )
            return
        logger.info(f"Converting annotations of dataset '{dataset_name}' to COCO format ...")
        coco_dict = convert_to_coco_dict(dataset_name)
        logger.info(f"Caching COCO format annotations at '{output_file}' ...")
        # Written beside and moved, so that a killed process leaves no half-written cache.
        unfinished = output_file + ".tmp"
        with PathManager.open(unfinished, "w") as f:
            json.dump(coco_dict, f)
        shutil.move(unfinished, output_file)
