"""Mask heads by the name in the config."""

from torch import nn

from detectron2.layers import ShapeSpec
from detectron2.utils.registry import Registry

ROI_MASK_HEAD_REGISTRY = Registry("ROI_MASK_HEAD")
ROI_MASK_HEAD_REGISTRY.__doc__ = """
Registry of callables `(cfg, input_shape: ShapeSpec) -> nn.Module` that predict masks from RoI features.
"""


def build_mask_head(cfg, input_shape: ShapeSpec) -> nn.Module:
    """Build `cfg.MODEL.ROI_MASK_HEAD.NAME`."""
    return ROI_MASK_HEAD_REGISTRY.get(cfg.MODEL.ROI_MASK_HEAD.NAME)(cfg, input_shape)
