"""Keypoint heads by the name in the config."""

from torch import nn

from detectron2.layers import ShapeSpec
from detectron2.utils.registry import Registry

ROI_KEYPOINT_HEAD_REGISTRY = Registry("ROI_KEYPOINT_HEAD")
ROI_KEYPOINT_HEAD_REGISTRY.__doc__ = """
Registry of callables `(cfg, input_shape: ShapeSpec) -> nn.Module` that predict keypoints from RoI features.
"""


def build_keypoint_head(cfg, input_shape: ShapeSpec) -> nn.Module:
    """Build `cfg.MODEL.ROI_KEYPOINT_HEAD.NAME`."""
    return ROI_KEYPOINT_HEAD_REGISTRY.get(cfg.MODEL.ROI_KEYPOINT_HEAD.NAME)(cfg, input_shape)
