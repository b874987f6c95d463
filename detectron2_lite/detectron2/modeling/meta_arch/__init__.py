"""Whole models, and their registries."""

from .build import META_ARCH_REGISTRY, build_model
from .rcnn import GeneralizedRCNN, ProposalNetwork
from .semantic_seg import SEM_SEG_HEADS_REGISTRY, build_sem_seg_head

__all__ = [
    "GeneralizedRCNN",
    "META_ARCH_REGISTRY",
    "ProposalNetwork",
    "SEM_SEG_HEADS_REGISTRY",
    "build_model",
    "build_sem_seg_head",
]
