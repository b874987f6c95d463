"""Box heads by the name in the config."""

from torch import nn

from detectron2.layers import ShapeSpec
from detectron2.utils.registry import Registry

ROI_BOX_HEAD_REGISTRY = Registry("ROI_BOX_HEAD")
ROI_BOX_HEAD_REGISTRY.__doc__ = """
Registry of callables `(cfg, input_shape: ShapeSpec) -> nn.Module` that turn RoI features into one vector per box.
"""


def build_box_head(cfg, input_shape: ShapeSpec) -> nn.Module:
    """Build `cfg.MODEL.ROI_BOX_HEAD.NAME`."""
    return ROI_BOX_HEAD_REGISTRY.get(cfg.MODEL.ROI_BOX_HEAD.NAME)(cfg, input_shape)
