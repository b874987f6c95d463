"""Topologies of the SA neck, traced by which inputs reach which outputs."""

import pytest
import torch

from necks import ESD1, ESD2, SA, GSConv, GSConvE1, GSConvE2
from necks.layers import nearest, soft_nearest

IMAGES = torch.randn(2, 3, 96, 128)
REACHES = {
    "none": [(3, 3), (4, 4), (5, 5)],
    "top_down": [(3, 3), (4, 4), (5, 5), (4, 3), (5, 3), (5, 4)],
    "bidirectional": [(i, j) for i in (3, 4, 5) for j in (3, 4, 5)],
}


@pytest.mark.parametrize("fusion", REACHES)
def test_topology(build_neck, fusion):
    neck = build_neck("SA", "SA.FUSION", fusion, "IN_FEATURES", ["res3", "res4", "res5"]).neck.eval()
    reached = []
    for target in (3, 4, 5):
        features = {
            f"res{level}": torch.randn(1, channels, 128 >> level, 128 >> level, requires_grad=True)
            for level, channels in zip((3, 4, 5), neck.in_channels, strict=True)
        }
        neck(features)[f"p{target}"].square().sum().backward()
        reached += [(source, target) for source in (3, 4, 5) if features[f"res{source}"].grad is not None]
    assert sorted(reached) == sorted(REACHES[fusion])


def test_bidirectional_formula(input_shapes):
    neck = SA(input_shapes, 8, num_bottlenecks=2).eval()
    features = {name: torch.randn(1, s.channels, 96 // s.stride, 96 // s.stride) for name, s in input_shapes.items()}
    y3, y4, y5 = (level(x) for level, x in zip(neck.filter, features.values(), strict=True))

    def up(x):
        return x.repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2) / 4

    t4 = neck.top_down[1](y4 + up(y5))
    n3 = neck.top_down[0](y3 + up(t4))
    n4 = neck.bottom_up[0](t4 + neck.down[0](n3))
    n5 = neck.bottom_up[1](y5 + neck.down[1](n4))
    for result, expected in zip(neck(features).values(), (n3, n4, n5), strict=True):
        torch.testing.assert_close(result, expected)


def test_bottleneck_is_residual(input_shapes):
    block = SA(input_shapes, 8).filter[0][1]
    for parameter in block.filter.parameters():
        parameter.data.zero_()
    x = torch.randn(2, 8, 6, 6)
    torch.testing.assert_close(block.eval()(x), x)


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
    assert all(type(down) is ESD1 for down in neck.down) and len(neck.down) == 3


def test_independent_hierarchy_has_no_fusion_layers(build_neck):
    neck = build_neck("SA", "SA.FUSION", "none", "SA.NUM_BOTTLENECKS", 0).neck
    assert {name.split(".")[0] for name, _ in neck.named_parameters()} == {"filter"}
