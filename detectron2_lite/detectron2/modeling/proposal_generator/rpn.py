"""Heads of region proposal networks by the name in the config."""

from torch import nn

from detectron2.layers import ShapeSpec
from detectron2.utils.registry import Registry

RPN_HEAD_REGISTRY = Registry("RPN_HEAD")
RPN_HEAD_REGISTRY.__doc__ = """
Registry of callables `(cfg, input_shape: list[ShapeSpec]) -> nn.Module` that predict objectness and box deltas.
"""


def build_rpn_head(cfg, input_shape: list[ShapeSpec]) -> nn.Module:
    """Build `cfg.MODEL.RPN.HEAD_NAME`."""
    return RPN_HEAD_REGISTRY.get(cfg.MODEL.RPN.HEAD_NAME)(cfg, input_shape)
