"""Registers COCO and Pascal VOC at import, under the folder that DETECTRON2_DATASETS names (default: ./datasets).

Registering reads no file: data that is not there is missed only when it is loaded.
"""

import os

from detectron2.data.catalog import MetadataCatalog

from .builtin_meta import _get_builtin_metadata
from .coco import register_coco_instances
from .pascal_voc import register_pascal_voc

_PREDEFINED_SPLITS_COCO = {
    "coco": {
        "coco_2014_train": ("coco/train2014", "coco/annotations/instances_train2014.json"),
        "coco_2014_val": ("coco/val2014", "coco/annotations/instances_val2014.json"),
        "coco_2014_minival": ("coco/val2014", "coco/annotations/instances_minival2014.json"),
        "coco_2014_valminusminival": ("coco/val2014", "coco/annotations/instances_valminusminival2014.json"),
        "coco_2017_train": ("coco/train2017", "coco/annotations/instances_train2017.json"),
        "coco_2017_val": ("coco/val2017", "coco/annotations/instances_val2017.json"),
        "coco_2017_test": ("coco/test2017", "coco/annotations/image_info_test2017.json"),
        "coco_2017_test-dev": ("coco/test2017", "coco/annotations/image_info_test-dev2017.json"),
        "coco_2017_val_100": ("coco/val2017", "coco/annotations/instances_val2017_100.json"),
    }
}

_PREDEFINED_SPLITS_PASCAL_VOC = [
    ("voc_2007_trainval", "VOC2007", "trainval"),
    ("voc_2007_train", "VOC2007", "train"),
    ("voc_2007_val", "VOC2007", "val"),
    ("voc_2007_test", "VOC2007", "test"),
    ("voc_2012_trainval", "VOC2012", "trainval"),
    ("voc_2012_train", "VOC2012", "train"),
    ("voc_2012_val", "VOC2012", "val"),
]


def register_all_coco(root: str) -> None:
    """Register every COCO split whose images and annotations lie in `root`/coco."""
    for dataset_name, splits in _PREDEFINED_SPLITS_COCO.items():
        for name, (image_root, json_file) in splits.items():
            register_coco_instances(
                name,
                _get_builtin_metadata(dataset_name),
                os.path.join(root, json_file),
                os.path.join(root, image_root),
            )


def register_all_pascal_voc(root: str) -> None:
    """Register every Pascal VOC split that lies in `root`/VOC2007 and `root`/VOC2012."""
    for name, dirname, split in _PREDEFINED_SPLITS_PASCAL_VOC:
        register_pascal_voc(name, os.path.join(root, dirname), split, 2007 if "2007" in name else 2012)
        MetadataCatalog.get(name).evaluator_type = "pascal_voc"


_root = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
register_all_coco(_root)
register_all_pascal_voc(_root)
