"""Levels above the inputs: pooled as in FPN, or convolved as in RetinaNet."""

import pytest
import torch
import torch.nn.functional as F

WITH_A_CHOICE = ["FPN", "PANet", "RFP", "AugFPN"]


@pytest.fixture(params=WITH_A_CHOICE)
def build(request, build_neck):
    """The backbone of a neck that returns p4 to p7 of res4 and res5."""
    torch.manual_seed(0)
    return lambda way: build_neck(
        request.param, "EXTRA_LEVELS", way, "IN_FEATURES", ["res4", "res5"], "NUM_LEVELS", 4, "NORM", ""
    )


def test_pooled_levels_are_every_second_pixel(build):
    neck = build("pool").neck
    pyramid = neck({"res4": torch.randn(1, 10, 13, 9), "res5": torch.randn(1, 12, 7, 5)})
    assert torch.equal(pyramid["p6"], pyramid["p5"][..., ::2, ::2])
    assert torch.equal(pyramid["p7"], pyramid["p6"][..., ::2, ::2])
    assert not [name for name in neck.state_dict() if "extra" in name]


def test_convolved_levels_follow_retinanet(build):
    neck = build("conv").neck
    parameters = dict(neck.named_parameters())
    first, second = ([parameters[n] for n in parameters if f"extra.{i}." in n] for i in range(2))
    pyramid = neck({"res4": torch.randn(1, 10, 13, 9), "res5": torch.randn(1, 12, 7, 5)})
    torch.testing.assert_close(pyramid["p6"], F.conv2d(pyramid["p5"], *first, stride=2, padding=1))
    torch.testing.assert_close(pyramid["p7"], F.conv2d(pyramid["p6"].relu(), *second, stride=2, padding=1))


def test_convolved_levels_learn(build):
    backbone = build("conv")
    sum(x.square().sum() for x in backbone(torch.randn(2, 3, 128, 192)).values()).backward()
    assert not [name for name, p in backbone.neck.named_parameters() if p.grad is None]
