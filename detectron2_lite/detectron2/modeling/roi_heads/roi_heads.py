"""RoI heads by the name in the config."""

from torch import nn

from detectron2.layers import ShapeSpec
from detectron2.utils.registry import Registry

ROI_HEADS_REGISTRY = Registry("ROI_HEADS")
ROI_HEADS_REGISTRY.__doc__ = """
Registry of callables `(cfg, input_shape: dict[str, ShapeSpec]) -> nn.Module` that predict objects from feature maps and
proposals.
"""


def build_roi_heads(cfg, input_shape: dict[str, ShapeSpec]) -> nn.Module:
    """Build `cfg.MODEL.ROI_HEADS.NAME`."""
    return ROI_HEADS_REGISTRY.get(cfg.MODEL.ROI_HEADS.NAME)(cfg, input_shape)
