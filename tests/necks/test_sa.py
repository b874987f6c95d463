"""Assemblies and topologies of the SA neck."""

import pytest
import torch

from necks import ESD1, ESD2, SA, GSConv, GSConvE1, GSConvE2
from necks.layers import nearest, soft_nearest
from necks.sa import C3, SUM

from . import plain

IMAGES = torch.randn(2, 3, 96, 128)
REACHES = {
    "none": [(3, 3), (4, 4), (5, 5)],
    "top_down": [(3, 3), (4, 4), (5, 5), (4, 3), (5, 3), (5, 4)],
    "bidirectional": [(i, j) for i in (3, 4, 5) for j in (3, 4, 5)],
}


@pytest.mark.parametrize("assembly", ["yolo", "sum"])
@pytest.mark.parametrize("fusion", REACHES)
def test_topology(build_neck, fusion, assembly):
    levels = ["res3", "res4", "res5"]
    neck = build_neck("SA", "SA.FUSION", fusion, "SA.ASSEMBLY", assembly, "IN_FEATURES", levels).neck.eval()
    reached = []
    for target in (3, 4, 5):
        features = {
            f"res{level}": torch.randn(1, channels, 128 >> level, 128 >> level, requires_grad=True)
            for level, channels in zip((3, 4, 5), neck.in_channels, strict=True)
        }
        neck(features)[f"p{target}"].square().sum().backward()
        reached += [(source, target) for source in (3, 4, 5) if features[f"res{source}"].grad is not None]
    assert sorted(reached) == sorted(REACHES[fusion])


def conv_norm_silu(layer, x, stride=1):
    return plain.silu(plain.batch_norm(layer.bn, plain.conv(layer.conv, x, stride)))


def gsconve1(layer, x, stride=1):
    """Half the channels dense, half from dense and depthwise 3×3 and GELU, interleaved."""
    primary = conv_norm_silu(layer.primary, x, stride)
    dense, depthwise, _ = layer.auxiliary
    auxiliary = plain.conv(depthwise, plain.conv(dense, primary))
    auxiliary = auxiliary * (1 + torch.erf(auxiliary / 2**0.5)) / 2
    return torch.stack([primary, auxiliary], dim=2).flatten(1, 2)


def c3(block, x):
    main = conv_norm_silu(block.main, x)
    for layer in block.bottlenecks:
        main = conv_norm_silu(layer, main)
    return conv_norm_silu(block.join, torch.cat([main, conv_norm_silu(block.side, x)], dim=1))


def sni(x, size):
    """Nearest, times the ratio of the areas."""
    return plain.nearest(x, size) * (x.shape[-2] * x.shape[-1]) / (size[0] * size[1])


@pytest.mark.parametrize("sizes", plain.SIZES.values(), ids=plain.SIZES)
def test_formula(input_shapes, sizes):
    neck = plain.randomize(SA(input_shapes, 8, num_bottlenecks=2)).eval()
    features = plain.random_features(input_shapes, sizes)
    y3, y4, y5 = (c3(level[1], gsconve1(level[0], x)) for level, x in zip(neck.filter, features.values(), strict=True))
    assert [len(level[1].bottlenecks) for level in neck.filter] == [4, 6, 8]  # 1×1 and 3×3 each

    def merge(module, a, b):
        return c3(module.block, torch.cat([a, b], dim=1))

    t4 = merge(neck.top_down[1], y4, sni(y5, y4.shape[-2:]))
    n3 = merge(neck.top_down[0], y3, sni(t4, y3.shape[-2:]))
    n4 = merge(neck.bottom_up[0], t4, gsconve1(neck.down[0], n3, stride=2))
    n5 = merge(neck.bottom_up[1], y5, gsconve1(neck.down[1], n4, stride=2))
    for result, expected in zip(neck(features).values(), (n3, n4, n5), strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sizes", plain.SIZES.values(), ids=plain.SIZES)
def test_formula_of_our_assembly(input_shapes, sizes):
    neck = plain.randomize(SA(input_shapes, 8, num_bottlenecks=2, assembly=SUM)).eval()
    features = plain.random_features(input_shapes, sizes)
    filtered = []
    for (first, bottlenecks), x in zip(neck.filter, features.values(), strict=True):
        y = gsconve1(first, x)
        for bottleneck in bottlenecks:
            y = y + gsconve1(bottleneck.filter, conv_norm_silu(bottleneck.reduce, y))
        filtered.append(y)
    y3, y4, y5 = filtered
    t4 = gsconve1(neck.top_down[1].filter, y4 + sni(y5, y4.shape[-2:]))
    n3 = gsconve1(neck.top_down[0].filter, y3 + sni(t4, y3.shape[-2:]))
    n4 = gsconve1(neck.bottom_up[0].filter, t4 + gsconve1(neck.down[0], n3, stride=2))
    n5 = gsconve1(neck.bottom_up[1].filter, y5 + gsconve1(neck.down[1], n4, stride=2))
    for result, expected in zip(neck(features).values(), (n3, n4, n5), strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name, layer", [("gsconv", GSConv), ("gsconve1", GSConvE1), ("gsconve2", GSConvE2)])
def test_convolution_by_config(build_neck, name, layer):
    backbone = build_neck("SA", "SA.CONV", name, "SA.DOWNSAMPLE", "esd2", "SA.UPSAMPLE", "nearest", "NUM_LEVELS", 5)
    neck = backbone.neck
    assert all(type(stack[0]) is layer for stack in neck.filter)
    assert all(type(down) is ESD2 for down in (*neck.extra, *neck.down))
    assert neck.upsample is nearest
    assert list(backbone(IMAGES)) == ["p2", "p3", "p4", "p5", "p6"]


def test_defaults_are_the_published_parts(build_neck):
    neck = build_neck("SA").neck
    assert neck.upsample is soft_nearest
    assert [type(down) for down in neck.down] == [GSConvE1] * 3
    assert [down.primary.conv.stride for down in neck.down] == [(2, 2)] * 3
    assert all(type(level[1]) is C3 for level in neck.filter)
    assert type(build_neck("SA", "SA.DOWNSAMPLE", "esd1").neck.down[0]) is ESD1


def test_independent_hierarchy_has_no_fusion_layers(build_neck):
    neck = build_neck("SA", "SA.FUSION", "none", "SA.NUM_BOTTLENECKS", 0).neck
    assert {name.split(".")[0] for name, _ in neck.named_parameters()} == {"filter"}
