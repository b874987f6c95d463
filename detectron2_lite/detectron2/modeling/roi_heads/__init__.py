"""Heads that work on regions, and their registries."""

from .box_head import ROI_BOX_HEAD_REGISTRY, FastRCNNConvFCHead, build_box_head
from .fast_rcnn import FastRCNNOutputLayers
from .keypoint_head import ROI_KEYPOINT_HEAD_REGISTRY, build_keypoint_head
from .mask_head import ROI_MASK_HEAD_REGISTRY, build_mask_head
from .roi_heads import ROI_HEADS_REGISTRY, Res5ROIHeads, ROIHeads, StandardROIHeads, build_roi_heads

__all__ = [
    "FastRCNNConvFCHead",
    "FastRCNNOutputLayers",
    "ROIHeads",
    "ROI_BOX_HEAD_REGISTRY",
    "ROI_HEADS_REGISTRY",
    "ROI_KEYPOINT_HEAD_REGISTRY",
    "ROI_MASK_HEAD_REGISTRY",
    "Res5ROIHeads",
    "StandardROIHeads",
    "build_box_head",
    "build_keypoint_head",
    "build_mask_head",
    "build_roi_heads",
]
