"""FPN against detectron2's own, and its ablations."""

import pytest
import torch
from detectron2.modeling.backbone.fpn import FPN as Detectron2FPN
from detectron2.modeling.backbone.fpn import LastLevelMaxPool

from necks import FPN

from . import plain


def features_of(input_shapes, sizes=((24, 40), (12, 20), (6, 10))):
    shapes = zip(input_shapes.items(), sizes, strict=True)
    return {name: torch.randn(2, shape.channels, *size) for (name, shape), size in shapes}


@pytest.mark.parametrize("sizes", plain.SIZES.values(), ids=plain.SIZES)
def test_formula(input_shapes, sizes):
    neck = plain.randomize(FPN(input_shapes, 8))
    features = plain.random_features(input_shapes, sizes)
    merged = []
    for lateral, c in reversed(list(zip(neck.lateral, features.values(), strict=True))):
        above = plain.nearest(merged[0], c.shape[-2:]) if merged else 0
        merged.insert(0, plain.conv(lateral, c) + above)
    for result, output, m in zip(neck(features).values(), neck.output, merged, strict=True):
        torch.testing.assert_close(result, plain.conv(output, m), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm", ["", "BN"])
def test_equals_detectron2_with_copied_weights(build_neck, norm):
    ours = build_neck("FPN", "NORM", norm, "NUM_LEVELS", 5).eval()
    in_features = ours.neck.in_features
    theirs = Detectron2FPN(ours.bottom_up, in_features, 16, norm=norm, top_block=LastLevelMaxPool()).eval()
    for level, lateral, output in zip(range(2, 6), ours.neck.lateral, ours.neck.output, strict=True):
        getattr(theirs, f"fpn_lateral{level}").load_state_dict(lateral.state_dict())
        getattr(theirs, f"fpn_output{level}").load_state_dict(output.state_dict())
    assert ours.output_shape() == theirs.output_shape()
    assert ours.size_divisibility == theirs.size_divisibility
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = theirs(images)
        result = ours(images)
    assert list(result) == list(expected)
    for name in expected:
        torch.testing.assert_close(result[name], expected[name])


def test_bottom_up_pyramid_does_not_mix_levels(input_shapes):
    neck = FPN(input_shapes, 8, top_down=False)
    features = features_of(input_shapes)
    before = neck(features)
    features["res5"] = torch.zeros_like(features["res5"])
    after = neck(features)
    assert torch.equal(before["p3"], after["p3"]) and torch.equal(before["p4"], after["p4"])
    assert not torch.equal(before["p5"], after["p5"])


def test_without_laterals_only_the_highest_level_matters(input_shapes):
    neck = FPN(input_shapes, 8, lateral=False)
    features = features_of(input_shapes)
    before = neck(features)
    after = neck({name: x if name == "res5" else x + 1 for name, x in features.items()})
    for name in before:
        assert torch.equal(before[name], after[name])
    assert len(neck.lateral) == 1
    assert all(p.grad is not None for p in _backward(neck, features))


def test_finest_level_only(input_shapes):
    full, finest = FPN(input_shapes, 8), FPN(input_shapes, 8, finest_only=True)
    missing = finest.load_state_dict(full.state_dict(), strict=False)
    assert not missing.missing_keys
    features = features_of(input_shapes)
    assert list(finest.output_shape()) == ["p3"] == list(finest(features))
    assert torch.equal(finest(features)["p3"], full(features)["p3"])
    assert all(p.grad is not None for p in _backward(finest, features))


def test_soft_nearest_upsampling_quarters_what_comes_down(build_neck):
    sni, nearest = (build_neck("FPN", "FPN.UPSAMPLE", mode).neck for mode in ("sni", "nearest"))
    nearest.load_state_dict(sni.state_dict())
    maps = [torch.randn(1, c, 64 >> i, 64 >> i) for i, c in enumerate(sni.in_channels)]
    own = sni.lateral[2](maps[2])
    torch.testing.assert_close(sni.merge(maps)[2] - own, (nearest.merge(maps)[2] - own) / 4)


def test_bilinear_upsampling_of_a_ramp_is_linear(build_neck):
    neck = build_neck("FPN", "FPN.UPSAMPLE", "bilinear").neck
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    up = neck.upsample(ramp, (16, 16))[0, 0, 0]
    torch.testing.assert_close(up[1:-1].diff(), torch.full((13,), 0.5))


def test_soft_bilinear_upsampling_is_a_quarter_of_bilinear(build_neck):
    soft, bilinear = (build_neck("FPN", "FPN.UPSAMPLE", mode).neck for mode in ("soft_bilinear", "bilinear"))
    x = torch.randn(1, 2, 5, 7)
    torch.testing.assert_close(soft.upsample(x, (9, 14)), bilinear.upsample(x, (9, 14)) / 4)


@pytest.mark.parametrize(
    "options",
    [
        {"top_down": False, "lateral": False},
        {"top_down": False, "finest_only": True},
        {"finest_only": True, "num_levels": 4},
    ],
)
def test_contradictory_ablations_are_refused(input_shapes, options):
    with pytest.raises(ValueError, match="(top_down|num_levels) is .*; it must be"):
        FPN(input_shapes, 8, **options)


def _backward(neck, features):
    sum(x.square().sum() for x in neck(features).values()).backward()
    return list(neck.parameters())
