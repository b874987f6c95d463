"""Whole models by the name in the config."""

import torch
from torch import nn

from detectron2.utils.registry import Registry

META_ARCH_REGISTRY = Registry("META_ARCH")
META_ARCH_REGISTRY.__doc__ = """
Registry of meta-architectures: callables `(cfg) -> nn.Module`. The module takes a list of dicts, one per image. In
training it returns a dict of losses, otherwise a list of dicts, one per image.
"""


def build_model(cfg) -> nn.Module:
    """Build `cfg.MODEL.META_ARCHITECTURE` on `cfg.MODEL.DEVICE`, without loading weights."""
    model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    model.to(torch.device(cfg.MODEL.DEVICE))
    return model
