"""Registries of heads that work on regions."""

from .box_head import ROI_BOX_HEAD_REGISTRY, build_box_head
from .keypoint_head import ROI_KEYPOINT_HEAD_REGISTRY, build_keypoint_head
from .mask_head import ROI_MASK_HEAD_REGISTRY, build_mask_head
from .roi_heads import ROI_HEADS_REGISTRY, build_roi_heads

__all__ = [
    "ROI_BOX_HEAD_REGISTRY",
    "ROI_HEADS_REGISTRY",
    "ROI_KEYPOINT_HEAD_REGISTRY",
    "ROI_MASK_HEAD_REGISTRY",
    "build_box_head",
    "build_keypoint_head",
    "build_mask_head",
    "build_roi_heads",
]
