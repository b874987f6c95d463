"""Feature-pyramid necks for detectron2 backbones. Importing this package registers all of them."""

from . import builder
from .config import add_neck_config
from .fpn import FPN
from .neck import NECK_REGISTRY, Neck, NeckBackbone, NeckConfigError
from .sa_layers import ESD1, ESD2, SNI, GSConv, GSConvE1, GSConvE2

__all__ = [
    "ESD1",
    "ESD2",
    "FPN",
    "NECK_REGISTRY",
    "SNI",
    "GSConv",
    "GSConvE1",
    "GSConvE2",
    "Neck",
    "NeckBackbone",
    "NeckConfigError",
    "add_neck_config",
    "builder",
]
