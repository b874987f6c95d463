"""Sparse R-CNN for detectron2. Importing this package registers the meta-architecture and the data sets."""

from typing import TYPE_CHECKING

from . import data  # noqa: F401  registers data sets
from .config import add_sparsercnn_config
from .config_file import load_config
from .modeling.criterion import SetCriterion
from .modeling.detector import SparseRCNN
from .modeling.head import DynamicHead
from .modeling.matcher import HungarianMatcher
from .modeling.roi_heads import RoutedROIHeads

if TYPE_CHECKING:
    from .fast.inference import prepare_for_inference
    from .predictor import Detector

__all__ = [
    "Detector",
    "DynamicHead",
    "HungarianMatcher",
    "RoutedROIHeads",
    "SetCriterion",
    "SparseRCNN",
    "add_sparsercnn_config",
    "load_config",
    "prepare_for_inference",
]


def __getattr__(name: str) -> object:
    # Imported when they are asked for: the folder `fast` is optional, and the engine takes a second to import.
    if name == "Detector":
        from .predictor import Detector

        return Detector
    if name == "prepare_for_inference":
        from .fast.inference import prepare_for_inference

        return prepare_for_inference
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
