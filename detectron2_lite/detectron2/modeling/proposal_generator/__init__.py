"""Registries of proposal generators."""

from .build import PROPOSAL_GENERATOR_REGISTRY, build_proposal_generator
from .rpn import RPN_HEAD_REGISTRY, build_rpn_head

__all__ = ["PROPOSAL_GENERATOR_REGISTRY", "RPN_HEAD_REGISTRY", "build_proposal_generator", "build_rpn_head"]
