from . import builtin as _builtin  # noqa: F401 (registers the built-in data sets)
from .coco import convert_to_coco_json, load_coco_json, register_coco_instances
from .pascal_voc import load_voc_instances, register_pascal_voc

__all__ = [
    "convert_to_coco_json",
    "load_coco_json",
    "load_voc_instances",
    "register_coco_instances",
    "register_pascal_voc",
]
