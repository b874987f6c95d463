"""Composition of bottom-up networks and necks by config, and what a mistake in the config is answered with."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, ResNet, build_backbone
from torch import nn

from necks import NECK_REGISTRY, SA, NeckBackbone, NeckConfigError, add_neck_config, build_neck_backbone

NECKS = ["AugFPN", "BiFPN", "FPN", "NASFPN", "PANet", "RFP", "SA", "SSD"]
SHORTHANDS = {"pan": "PANet", "ihp": "SA"} | {name.lower(): name for name in NECKS if name not in ("FPN", "PANet")}


def test_all_necks_of_the_project_are_registered():
    assert set(NECKS) <= {name for name, _ in NECK_REGISTRY}


def test_any_bottom_up_and_its_padding(build_neck):
    backbone = build_neck("PANet", "BOTTOM_UP", "build_strided_patches", "IN_FEATURES", ["fine", "coarse"])
    assert isinstance(backbone.bottom_up, StridedPatches)
    assert backbone.size_divisibility == 48
    assert backbone.padding_constraints == {"square_size": 96}
    backbone.bottom_up.size_divisibility = 24  # together with the highest stride, 16
    assert backbone.size_divisibility == 48
    pyramid = backbone(torch.randn(2, 3, 48, 96))
    assert {name: tuple(x.shape) for name, x in pyramid.items()} == {"p3": (2, 16, 6, 12), "p4": (2, 16, 3, 6)}


def test_padding_defaults_to_the_highest_input(build_neck):
    assert build_neck("FPN").size_divisibility == 32
    assert build_neck("FPN", "IN_FEATURES", ["res2", "res3"]).size_divisibility == 8
    assert build_neck("BiFPN", "NUM_LEVELS", 6).size_divisibility == 32


@pytest.mark.parametrize("short_name", SHORTHANDS)
def test_resnet_shorthands(short_name):
    cfg = get_cfg()
    add_neck_config(cfg)
    cfg.MODEL.BACKBONE.NAME = f"build_resnet_{short_name}_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    cfg.MODEL.NECK.BOTTOM_UP = "build_tiny_bottom_up"
    cfg.MODEL.NECK.OUT_CHANNELS = 32
    before = cfg.dump()
    cfg.freeze()
    backbone = build_backbone(cfg)
    assert type(backbone.neck).__name__ == SHORTHANDS[short_name]
    assert isinstance(backbone.bottom_up, ResNet) and backbone.bottom_up.output_shape()["res5"].channels == 512
    assert cfg.dump() == before
    if isinstance(backbone.neck, SA):
        assert bool(backbone.neck.top_down) == (short_name == "sa")


@pytest.mark.parametrize("name", NECKS)
def test_only_augfpn_offers_auxiliary_supervision(build_neck, name):
    backbone = build_neck(name)
    assert isinstance(backbone, NeckBackbone)
    assert hasattr(backbone, "forward_supervised") == (name == "AugFPN")


def test_auxiliary_pyramid_has_the_names_and_channels_of_the_first(build_neck):
    backbone = build_neck("AugFPN", "NUM_LEVELS", 5)
    pyramid, auxiliary = backbone.forward_supervised(torch.randn(2, 3, 64, 96))
    assert len(auxiliary) == 1
    for weight, other in auxiliary:
        assert weight == 0.25
        assert {name: x.shape for name, x in other.items()} == {name: x.shape for name, x in pyramid.items()}


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("FPM", (), "MODEL.NECK.NAME is 'FPM': choose one of AugFPN, BiFPN, FPN, .*SSD"),
        ("FPN", ("BOTTOM_UP", "build_resnext"), "MODEL.NECK.BOTTOM_UP is 'build_resnext': .*build_resnet_backbone"),
        ("FPN", ("IN_FEATURES", ["res2", "res9"]), "IN_FEATURES names res9, .*choose among res2, res3, res4, res5"),
        ("FPN", ("BOTTOM_UP", "build_neck_backbone"), "BOTTOM_UP is 'build_neck_backbone': .*build_resnet_backbone"),
        ("FPN", ("BOTTOM_UP", "build_resnet_sa_backbone"), "BOTTOM_UP is 'build_resnet_sa_backbone': choose one of"),
        ("FPN", ("IN_FEATURES", []), "MODEL.NECK.IN_FEATURES is empty"),
        ("FPN", ("IN_FEATURES", ["res2", "res3", "res3"]), "MODEL.NECK.IN_FEATURES repeats res3: choose each .* once"),
        ("PANet", ("EXTRA_LEVELS", "max"), "MODEL.NECK.EXTRA_LEVELS is 'max': choose one of conv, pool"),
        ("PANet", ("IN_FEATURES", ["res2", "res4"]), r"IN_FEATURES is not contiguous: res2 \(stride 4\), res4"),
        ("BiFPN", ("IN_FEATURES", ["res3", "res2"]), "IN_FEATURES is not contiguous: res3.*from low to high"),
        ("SSD", ("NUM_LEVELS", 3), "MODEL.NECK.NUM_LEVELS is 3, .* choose 0 .* or at least 4"),
        ("SSD", ("OUT_CHANNELS", 0), "MODEL.NECK.OUT_CHANNELS is 0"),
        ("SSD", ("NORM", "BatchNorm"), "MODEL.NECK.NORM is 'BatchNorm', .*choose BN, SyncBN"),
        ("SA", ("NORM", "GN"), "MODEL.NECK.NORM is 'GN', for 8 channels: .*multiple of 32"),
        ("SA", ("OUT_CHANNELS", 1, "SA.CONV", "conv"), "MODEL.NECK.OUT_CHANNELS is 1: choose 2 or more"),
        ("SA", ("SA.NUM_BOTTLENECKS", -1), "MODEL.NECK.SA.NUM_BOTTLENECKS is -1: choose 0 or more"),
        ("SA", ("OUT_CHANNELS", 15), "MODEL.NECK.OUT_CHANNELS is 15: .*multiple of 2"),
        ("SA", ("SA.CONV", "gsconve2", "OUT_CHANNELS", 18), "MODEL.NECK.OUT_CHANNELS is 18: .*multiple of 4"),
        ("SA", ("SA.FUSION", "both"), "MODEL.NECK.SA.FUSION is 'both': choose one of bidirectional, none, top_down"),
        ("SA", ("SA.CONV", "dense"), "MODEL.NECK.SA.CONV is 'dense': choose one of conv, gsconv, gsconve1, gsconve2"),
        ("FPN", ("FPN.UPSAMPLE", "cubic"), "MODEL.NECK.FPN.UPSAMPLE is 'cubic': choose one of bilinear, nearest, sni"),
        (
            "PANet",
            ("PANET.DOWNSAMPLE", "pool"),
            "MODEL.NECK.PANET.DOWNSAMPLE is 'pool': choose one of conv, esd1, esd2",
        ),
        ("BiFPN", ("BIFPN.FUSION", "sum"), "MODEL.NECK.BIFPN.FUSION is 'sum': choose one of fast, softmax, unbounded"),
        ("BiFPN", ("BIFPN.NUM_LAYERS", 0), "MODEL.NECK.BIFPN.NUM_LAYERS is 0: choose 1 or more"),
        (
            "BiFPN",
            ("BIFPN.COMPOUND", 1, "NORM", "GN"),
            "MODEL.NECK.NORM is 'GN', for 88 channels: choose BN, .*GN .*32",
        ),
        ("BiFPN", ("BIFPN.COMPOUND", 2, "NORM", "GN"), "MODEL.NECK.NORM is 'GN', for 112 channels: choose BN"),
        ("AugFPN", ("AUGFPN.RATIOS", []), r"MODEL.NECK.AUGFPN.RATIOS is \[\]: choose one or more numbers above 0"),
        ("AugFPN", ("AUGFPN.RATIOS", ["a"]), r"MODEL.NECK.AUGFPN.RATIOS is \['a'\]: choose"),
        ("AugFPN", ("AUGFPN.RATIOS", [0.0, 0.5]), r"MODEL.NECK.AUGFPN.RATIOS is \[0.0, 0.5\]: choose"),
        ("AugFPN", ("AUGFPN.RATIOS", [1.5]), r"MODEL.NECK.AUGFPN.RATIOS is \[1.5\]: choose .* at most 1"),
        ("AugFPN", ("AUGFPN.SUPERVISION_WEIGHT", -0.1), "AUGFPN.SUPERVISION_WEIGHT is -0.1: choose 0 or more"),
        ("BiFPN", ("BIFPN.COMPOUND", 9), "MODEL.NECK.BIFPN.COMPOUND is 9: choose 0 to 7"),
    ],
)
def test_mistakes_name_the_key_and_the_choices(build_neck, name, options, message):
    with pytest.raises(NeckConfigError, match=message) as error:
        build_neck(name, *options)
    assert "\n" not in str(error.value)


def test_resnet_that_gives_too_few_levels_points_to_its_key(neck_cfg):
    cfg = neck_cfg("FPN", "BOTTOM_UP", "build_resnet_backbone")
    with pytest.raises(NeckConfigError, match="names res2, res3, res5, .*choose among res4 .*RESNETS.OUT_FEATURES"):
        build_neck_backbone(cfg, ShapeSpec(channels=3))


def test_features_that_differ_from_the_declared_ones(build_neck):
    neck = build_neck("FPN").neck
    features = {name: torch.randn(1, c, 8, 8) for name, c in zip(neck.in_features, neck.in_channels, strict=True)}
    with pytest.raises(NeckConfigError, match="IN_FEATURES: res3 has 9 channels, .*the 8 it declares"):
        neck(features | {"res3": torch.randn(1, 9, 8, 8)})
    del features["res4"]
    with pytest.raises(NeckConfigError, match="IN_FEATURES needs res4: choose among res2, res3, res5"):
        neck(features)
