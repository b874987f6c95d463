"""Feature-pyramid necks for detectron2 backbones. Importing this package registers all of them."""

from .augfpn import AugFPN
from .bifpn import BiFPN, compound_scaling
from .builder import build_neck_backbone
from .config import add_neck_config
from .errors import NeckConfigError
from .fpn import FPN
from .nasfpn import NASFPN
from .neck import NECK_REGISTRY, Neck, NeckBackbone
from .panet import PANet
from .rfp import RFP
from .sa import SA
from .sa_layers import ESD1, ESD2, SNI, GSConv, GSConvE1, GSConvE2
from .ssd import SSD
from .timm_backbone import TimmBackbone, build_timm_backbone

__all__ = [
    "ESD1",
    "ESD2",
    "FPN",
    "NASFPN",
    "NECK_REGISTRY",
    "RFP",
    "SA",
    "SNI",
    "SSD",
    "AugFPN",
    "BiFPN",
    "GSConv",
    "GSConvE1",
    "GSConvE2",
    "Neck",
    "NeckBackbone",
    "NeckConfigError",
    "PANet",
    "TimmBackbone",
    "add_neck_config",
    "build_neck_backbone",
    "build_timm_backbone",
    "compound_scaling",
]
