"""Sparse R-CNN for detectron2. Importing this package registers the meta-architecture and the data sets."""

from . import data  # noqa: F401  registers data sets
from .config import add_sparsercnn_config
from .criterion import SetCriterion
from .detector import SparseRCNN
from .head import DynamicHead
from .inference import prepare_for_inference
from .matcher import HungarianMatcher

__all__ = [
    "DynamicHead",
    "HungarianMatcher",
    "SetCriterion",
    "SparseRCNN",
    "add_sparsercnn_config",
    "prepare_for_inference",
]
