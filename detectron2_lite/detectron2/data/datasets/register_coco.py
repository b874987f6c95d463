"""The import path of `register_coco_instances` that older projects use."""

from .coco import register_coco_instances

__all__ = ["register_coco_instances"]
