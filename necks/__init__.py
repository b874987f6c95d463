"""Feature-pyramid necks for detectron2 backbones. Importing this package registers all of them."""

from .bifpn import BiFPN, compound_scaling
from .builder import build_neck_backbone
from .config import add_neck_config
from .fpn import FPN
from .neck import NECK_REGISTRY, Neck, NeckBackbone, NeckConfigError, SupervisedNeckBackbone
from .panet import PANet
from .sa import SA
from .sa_layers import ESD1, ESD2, SNI, GSConv, GSConvE1, GSConvE2
from .ssd import SSD

__all__ = [
    "ESD1",
    "ESD2",
    "FPN",
    "NECK_REGISTRY",
    "SA",
    "SNI",
    "SSD",
    "BiFPN",
    "GSConv",
    "GSConvE1",
    "GSConvE2",
    "Neck",
    "NeckBackbone",
    "NeckConfigError",
    "PANet",
    "SupervisedNeckBackbone",
    "add_neck_config",
    "build_neck_backbone",
    "compound_scaling",
]
