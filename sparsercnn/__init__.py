"""Sparse R-CNN for detectron2. Importing this package registers the meta-architecture and the data sets."""

from . import data  # noqa: F401  registers data sets
from .config import add_sparsercnn_config
from .config_file import load_config
from .fast.inference import prepare_for_inference
from .modeling.criterion import SetCriterion
from .modeling.detector import SparseRCNN
from .modeling.head import DynamicHead
from .modeling.matcher import HungarianMatcher

__all__ = [
    "DynamicHead",
    "HungarianMatcher",
    "SetCriterion",
    "SparseRCNN",
    "add_sparsercnn_config",
    "load_config",
    "prepare_for_inference",
]
