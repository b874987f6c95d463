"""Proposal generators by the name in the config."""

from torch import nn

from detectron2.layers import ShapeSpec
from detectron2.utils.registry import Registry

PROPOSAL_GENERATOR_REGISTRY = Registry("PROPOSAL_GENERATOR")
PROPOSAL_GENERATOR_REGISTRY.__doc__ = """
Registry of callables `(cfg, input_shape: dict[str, ShapeSpec]) -> nn.Module` that propose objects from feature maps.
"""


def build_proposal_generator(cfg, input_shape: dict[str, ShapeSpec]) -> nn.Module | None:
    """Build `cfg.MODEL.PROPOSAL_GENERATOR.NAME`; None for "PrecomputedProposals"."""
    name = cfg.MODEL.PROPOSAL_GENERATOR.NAME
    if name == "PrecomputedProposals":
        return None
    return PROPOSAL_GENERATOR_REGISTRY.get(name)(cfg, input_shape)
