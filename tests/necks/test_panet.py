"""PANet's bottom-up path step by step."""

import pytest
import torch
import torch.nn.functional as F

from necks import ESD1, ESD2, PANet


def test_formula(input_shapes):
    neck = PANet(input_shapes, 8)
    features = {name: torch.randn(1, s.channels, 96 // s.stride, 160 // s.stride) for name, s in input_shapes.items()}
    p3, p4, p5 = neck.fpn(features).values()

    def step(n, p, i):
        down = F.conv2d(n, neck.down[i].weight, neck.down[i].bias, stride=2, padding=1)
        return F.conv2d(p + down, neck.output[i].weight, neck.output[i].bias, padding=1)

    n4 = step(p3, p4, 0)
    n5 = step(n4, p5, 1)
    for result, expected in zip(neck(features).values(), (p3, n4, n5), strict=True):
        torch.testing.assert_close(result, expected)


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
