"""Anchor generators by the name in the config."""

from torch import nn

from detectron2.layers import ShapeSpec
from detectron2.utils.registry import Registry

ANCHOR_GENERATOR_REGISTRY = Registry("ANCHOR_GENERATOR")
ANCHOR_GENERATOR_REGISTRY.__doc__ = """
Registry of callables `(cfg, input_shape: list[ShapeSpec]) -> nn.Module` that make boxes on a grid for each feature map.
"""


def build_anchor_generator(cfg, input_shape: list[ShapeSpec]) -> nn.Module:
    """Build `cfg.MODEL.ANCHOR_GENERATOR.NAME`."""
    return ANCHOR_GENERATOR_REGISTRY.get(cfg.MODEL.ANCHOR_GENERATOR.NAME)(cfg, input_shape)
