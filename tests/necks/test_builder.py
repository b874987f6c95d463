"""Composition of bottom-up networks and necks by config, and what a mistake in the config is answered with."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import ResNet, build_backbone

from necks import NECK_REGISTRY, SA, NeckBackbone, NeckConfigError, add_neck_config, build_neck_backbone

NECKS = ["AugFPN", "BiFPN", "FPN", "NASFPN", "PANet", "RFP", "SA", "SSD"]
SHORTHANDS = {"pan": "PANet", "ihp": "SA"} | {name.lower(): name for name in NECKS if name not in ("FPN", "PANet")}


def test_all_necks_of_the_project_are_registered():
    assert set(NECKS) <= {name for name, _ in NECK_REGISTRY}


def test_any_bottom_up_and_its_padding(build_neck):
    backbone = build_neck("PANet", "BOTTOM_UP", "build_strided_patches", "IN_FEATURES", ["fine", "coarse"])
    assert type(backbone.bottom_up).__name__ == "StridedPatches"
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
        assert (backbone.neck.top_down is not None) == (short_name == "sa")


@pytest.mark.parametrize("name", NECKS)
def test_only_augfpn_has_an_auxiliary_pyramid(build_neck, name):
    backbone = build_neck(name)
    assert isinstance(backbone, NeckBackbone)
    assert backbone.auxiliary_pyramids == ({"lateral_": 0.25} if name == "AugFPN" else {})


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("FPM", (), "MODEL.NECK.NAME is 'FPM'; it must be one of AugFPN, BiFPN, FPN, .*SSD"),
        ("FPN", ("BOTTOM_UP", "build_resnext"), "MODEL.NECK.BOTTOM_UP is 'build_resnext'; .*build_resnet_backbone"),
        ("FPN", ("IN_FEATURES", ["res2", "res9"]), "IN_FEATURES names res9, .*it gives res2, res3, res4, res5"),
        ("FPN", ("BOTTOM_UP", "build_neck_backbone"), "BOTTOM_UP is 'build_neck_backbone'; .*build_resnet_backbone"),
        (
            "FPN",
            ("BOTTOM_UP", "build_resnet_sa_backbone"),
            "BOTTOM_UP is 'build_resnet_sa_backbone'; it must be one of",
        ),
        ("FPN", ("IN_FEATURES", []), "MODEL.NECK.IN_FEATURES is empty; it must hold one or more"),
        (
            "FPN",
            ("IN_FEATURES", ["res2", "res3", "res3"]),
            "MODEL.NECK.IN_FEATURES repeats res3; each level must be .* once",
        ),
        (
            "FPN",
            ("FPN.TOP_DOWN", False, "FPN.LATERAL", False),
            "FPN.TOP_DOWN is False; .* MODEL.NECK.FPN.LATERAL is False",
        ),
        (
            "FPN",
            ("FPN.FINEST_ONLY", True, "NUM_LEVELS", 5),
            "MODEL.NECK.NUM_LEVELS is 5; it must be 0 where MODEL.NECK.FPN.FINEST_ONLY is True",
        ),
        ("PANet", ("EXTRA_LEVELS", "max"), "EXTRA_LEVELS is 'max'; it must be one of conv, conv_from_output, pool"),
        ("PANet", ("IN_FEATURES", ["res2", "res4"]), r"IN_FEATURES is not contiguous: res2 \(stride 4\), res4"),
        ("BiFPN", ("IN_FEATURES", ["res3", "res2"]), "IN_FEATURES is not contiguous: res3.*from low to high"),
        ("SSD", ("NUM_LEVELS", 3), "MODEL.NECK.NUM_LEVELS is 3; it must be 0 .* or at least 4"),
        ("NASFPN", ("NUM_LEVELS", 6), "MODEL.NECK.NUM_LEVELS is 6; NAS-FPN joins at most 5"),
        ("NASFPN", ("NASFPN.STACK", 0), "MODEL.NECK.NASFPN.STACK is 0; it must be at least 1"),
        ("RFP", ("RFP.STEPS", 1), "MODEL.NECK.RFP.STEPS is 1; it must be at least 2"),
        ("RFP", ("OUT_CHANNELS", 3), "MODEL.NECK.OUT_CHANNELS is 3; it must be at least 4"),
        ("SSD", ("OUT_CHANNELS", 0), "MODEL.NECK.OUT_CHANNELS is 0; it must be at least 1"),
        ("SSD", ("NORM", "BatchNorm"), "MODEL.NECK.NORM is 'BatchNorm', .*must be one of BN, SyncBN"),
        ("SA", ("NORM", "GN"), "MODEL.NECK.NORM is 'GN', for 8 channels; .*multiple of 32"),
        ("SA", ("OUT_CHANNELS", 1, "SA.CONV", "conv"), "MODEL.NECK.OUT_CHANNELS is 1; it must be at least 2"),
        ("SA", ("SA.NUM_BOTTLENECKS", -1), "MODEL.NECK.SA.NUM_BOTTLENECKS is -1; it must be at least 0"),
        ("SA", ("OUT_CHANNELS", 15), "MODEL.NECK.OUT_CHANNELS is 15; .*multiple of 2"),
        ("SA", ("SA.CONV", "gsconve2", "OUT_CHANNELS", 18), "MODEL.NECK.OUT_CHANNELS is 18; .*multiple of 4"),
        (
            "SA",
            ("SA.FUSION", "both"),
            "MODEL.NECK.SA.FUSION is 'both'; it must be one of bidirectional, none, top_down",
        ),
        ("SA", ("SA.ASSEMBLY", "c2f"), "MODEL.NECK.SA.ASSEMBLY is 'c2f'; it must be one of sum, yolo"),
        (
            "SA",
            ("SA.CONV", "dense"),
            "MODEL.NECK.SA.CONV is 'dense'; it must be one of conv, gsconv, gsconve1, gsconve2",
        ),
        (
            "FPN",
            ("FPN.UPSAMPLE", "cubic"),
            "FPN.UPSAMPLE is 'cubic'; it must be one of bilinear, nearest, sni, soft_bil",
        ),
        ("PANet", ("PANET.DOWNSAMPLE", "pool"), "PANET.DOWNSAMPLE is 'pool'; it must be one of conv, esd1, esd2"),
        ("BiFPN", ("BIFPN.FUSION", "mean"), "BIFPN.FUSION is 'mean'; it must be one of fast, softmax, sum, unbounded"),
        ("BiFPN", ("BIFPN.NUM_LAYERS", 0), "MODEL.NECK.BIFPN.NUM_LAYERS is 0; it must be at least 1"),
        ("BiFPN", ("BIFPN.COMPOUND", 1, "NORM", "GN"), "MODEL.NECK.NORM is 'GN', for 88 channels; .* BN, .*GN .*32"),
        ("BiFPN", ("BIFPN.COMPOUND", 2, "NORM", "GN"), "MODEL.NECK.NORM is 'GN', for 112 channels; .* BN"),
        ("BiFPN", ("BIFPN.COMPOUND", 9), "MODEL.NECK.BIFPN.COMPOUND is 9; it must be 0 to 7"),
        ("AugFPN", ("AUGFPN.RATIOS", []), r"MODEL.NECK.AUGFPN.RATIOS is \[\]; it must be one or more numbers above 0"),
        ("AugFPN", ("AUGFPN.RATIOS", [1.5]), r"MODEL.NECK.AUGFPN.RATIOS is \[1.5\]; .* at most 1"),
        ("AugFPN", ("AUGFPN.SUPERVISION_WEIGHT", -0.1), "AUGFPN.SUPERVISION_WEIGHT is -0.1; it must be at least 0"),
    ],
)
def test_mistakes_name_the_key_and_the_choices(build_neck, name, options, message):
    with pytest.raises(NeckConfigError, match=message) as error:
        build_neck(name, *options)
    assert "\n" not in str(error.value)


def test_arguments_are_named_where_there_is_no_config(input_shapes):
    makers = {name: make for name, make in NECK_REGISTRY if name in NECKS}
    for make in makers.values():
        with pytest.raises(ValueError, match="^out_channels is 0; it must be at least 1$") as error:
            make(input_shapes, 0)
        assert not isinstance(error.value, NeckConfigError)


def test_a_mistake_of_a_neck_that_names_no_argument_says_where_it_came_from(neck_cfg, monkeypatch):
    def refuse(*args):
        raise ValueError("two of the three")

    monkeypatch.setattr("necks.builder.NECK_REGISTRY", {"FPN": refuse})
    with pytest.raises(NeckConfigError, match=r"^MODEL.NECK \(FPN\): two of the three$"):
        build_neck_backbone(neck_cfg("FPN"), ShapeSpec(channels=3))


def test_resnet_that_gives_too_few_levels_points_to_its_key(neck_cfg):
    cfg = neck_cfg("FPN", "BOTTOM_UP", "build_resnet_backbone")
    with pytest.raises(NeckConfigError, match="names res2, res3, res5, .*it gives res4 .*RESNETS.OUT_FEATURES"):
        build_neck_backbone(cfg, ShapeSpec(channels=3))
