"""Semantic segmentation heads by the name in the config."""

from torch import nn

from detectron2.layers import ShapeSpec
from detectron2.utils.registry import Registry

SEM_SEG_HEADS_REGISTRY = Registry("SEM_SEG_HEADS")
SEM_SEG_HEADS_REGISTRY.__doc__ = """
Registry of callables `(cfg, input_shape: dict[str, ShapeSpec]) -> nn.Module`.
"""


def build_sem_seg_head(cfg, input_shape: dict[str, ShapeSpec]) -> nn.Module:
    """Build `cfg.MODEL.SEM_SEG_HEAD.NAME`."""
    return SEM_SEG_HEADS_REGISTRY.get(cfg.MODEL.SEM_SEG_HEAD.NAME)(cfg, input_shape)
