"""Levels above the inputs: pooled as in FPN, or convolved as in RetinaNet."""

import pytest
import torch
import torch.nn.functional as F

from necks import NeckConfigError

WITH_A_CHOICE = ["FPN", "PANet", "RFP", "AugFPN"]
FEATURES = {"res4": torch.randn(1, 10, 13, 9), "res5": torch.randn(1, 12, 7, 5)}


@pytest.fixture(params=WITH_A_CHOICE)
def build(request, build_neck):
    """The backbone of a neck that returns p4 to p7 of res4 and res5."""
    torch.manual_seed(0)
    return lambda way: build_neck(
        request.param, "EXTRA_LEVELS", way, "IN_FEATURES", ["res4", "res5"], "NUM_LEVELS", 4, "NORM", ""
    )


def test_pooled_levels_are_every_second_pixel(build):
    neck = build("pool").neck
    pyramid = neck(FEATURES)
    assert torch.equal(pyramid["p6"], pyramid["p5"][..., ::2, ::2])
    assert torch.equal(pyramid["p7"], pyramid["p6"][..., ::2, ::2])
    assert not [name for name in neck.state_dict() if "extra" in name]


@pytest.mark.parametrize("way", ["conv", "conv_from_output"])
def test_convolved_levels_follow_retinanet(build, way):
    neck = build(way).neck
    parameters = dict(neck.named_parameters())
    first, second = ([parameters[n] for n in parameters if f"extra.{i}." in n] for i in range(2))
    pyramid = neck(FEATURES)
    below = FEATURES["res5"] if way == "conv" else pyramid["p5"]
    torch.testing.assert_close(pyramid["p6"], F.conv2d(below, *first, stride=2, padding=1))
    torch.testing.assert_close(pyramid["p7"], F.conv2d(pyramid["p6"].relu(), *second, stride=2, padding=1))


def test_convolved_levels_learn(build):
    backbone = build("conv")
    sum(x.square().sum() for x in backbone(torch.randn(2, 3, 128, 192)).values()).backward()
    assert not [name for name, p in backbone.neck.named_parameters() if p.grad is None]


def test_batch_norm_on_a_single_pixel_is_explained(build_neck):
    backbone = build_neck("FPN", "EXTRA_LEVELS", "conv", "NUM_LEVELS", 6, "NORM", "BN")
    with pytest.raises(
        NeckConfigError, match=r"batch norm .* \(1, 3, 64, 64\) .* more images .* another norm"
    ) as caught:
        backbone(torch.randn(1, 3, 64, 64))
    assert "\n" not in str(caught.value)
    assert backbone(torch.randn(2, 3, 64, 64))["p7"].shape == (2, 16, 1, 1)
    assert backbone.eval()(torch.randn(1, 3, 64, 64))["p7"].shape == (1, 16, 1, 1)
