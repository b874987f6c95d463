"""Data sets of one's own, in COCO format, named in the config alone."""

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from ..errors import InputError


def register_config_datasets(cfg: CfgNode) -> None:
    """Register each [name, annotation file, image folder] of `DATASETS.COCO_JSON`.

    Raises:
        InputError: an entry is no such triple, its name belongs to another data set, or leads out of the folder of
            results that is called after it.
    """
    for entry in cfg.DATASETS.COCO_JSON:
        if not isinstance(entry, (list, tuple)) or len(entry) != 3 or not all(isinstance(x, str) for x in entry):
            raise InputError(
                f"DATASETS.COCO_JSON: {entry!r} must be [name, annotation file, image folder], three strings"
            )
        name, annotations, images = entry
        if not name.isprintable() or name in ("", ".", "..") or "/" in name or "\\" in name:
            raise InputError(f"DATASETS.COCO_JSON: {name!r} names a folder of results and may hold no slashes")
        if name in DatasetCatalog.list():
            known = MetadataCatalog.get(name)
            if (known.get("json_file"), known.get("image_root")) != (annotations, images):
                raise InputError(f"DATASETS.COCO_JSON: the name {name} is taken by another data set; choose another")
        else:
            register_coco_instances(name, {}, annotations, images)
