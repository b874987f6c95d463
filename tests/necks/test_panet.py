"""PANet's bottom-up path step by step."""

import pytest
import torch

from necks import ESD1, ESD2, PANet

from . import plain


@pytest.mark.parametrize("sizes", plain.SIZES.values(), ids=plain.SIZES)
def test_formula(input_shapes, sizes):
    neck = plain.randomize(PANet(input_shapes, 8))
    features = plain.random_features(input_shapes, sizes)
    c3, c4, c5 = features.values()
    lateral, output = neck.fpn.lateral, neck.fpn.output
    m5 = plain.conv(lateral[2], c5)
    m4 = plain.conv(lateral[1], c4) + plain.nearest(m5, c4.shape[-2:])
    m3 = plain.conv(lateral[0], c3) + plain.nearest(m4, c3.shape[-2:])
    p3, p4, p5 = (plain.conv(layer, m) for layer, m in zip(output, (m3, m4, m5), strict=True))

    def step(n, p, i):
        down = plain.conv(neck.down[i], n, stride=2).clamp(min=0)
        return plain.conv(neck.output[i], p + down).clamp(min=0)

    n4 = step(p3, p4, 0)
    n5 = step(n4, p5, 1)
    for result, expected in zip(neck(features).values(), (p3, n4, n5), strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


def test_levels_that_round_down(input_shapes):
    sizes = {"res3": (25, 13), "res4": (12, 6), "res5": (6, 3)}
    features = {name: torch.randn(1, s.channels, *sizes[name]) for name, s in input_shapes.items()}
    pyramid = PANet(input_shapes, 8)(features)
    assert [tuple(x.shape[-2:]) for x in pyramid.values()] == list(sizes.values())


def test_extra_levels_subsample_the_highest(build_neck):
    neck = build_neck("PANet", "NUM_LEVELS", 6).neck.eval()
    pyramid = neck({f"res{i + 2}": torch.randn(1, c, 64 >> i, 48 >> i) for i, c in enumerate(neck.in_channels)})
    assert torch.equal(pyramid["p6"], pyramid["p5"][..., ::2, ::2])
    assert torch.equal(pyramid["p7"], pyramid["p6"][..., ::2, ::2])


@pytest.mark.parametrize("name, layer", [("esd1", ESD1), ("esd2", ESD2)])
def test_esd_and_sni_drop_in(build_neck, name, layer):
    backbone = build_neck("PANet", "PANET.DOWNSAMPLE", name, "PANET.UPSAMPLE", "sni")
    assert all(type(down) is layer for down in backbone.neck.down)
    assert backbone.neck.fpn.upsample is not build_neck("PANet").neck.fpn.upsample
    assert [x.shape[-1] for x in backbone(torch.randn(2, 3, 70, 101)).values()] == [26, 13, 7, 4]
