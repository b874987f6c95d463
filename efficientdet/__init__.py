"""EfficientDet for detectron2. Importing this package registers the meta-architecture."""

from .anchors import EfficientDetAnchors
from .config import add_efficientdet_config
from .criterion import EfficientDetCriterion
from .detector import EfficientDet
from .errors import EfficientDetConfigError
from .head import EfficientDetHead
from .scaling import scaled_keys

__all__ = [
    "EfficientDet",
    "EfficientDetAnchors",
    "EfficientDetConfigError",
    "EfficientDetCriterion",
    "EfficientDetHead",
    "add_efficientdet_config",
    "scaled_keys",
]
