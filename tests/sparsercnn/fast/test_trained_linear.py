"""Dynamic layers of training give the results and gradients of the plain ones."""

import copy
from unittest import mock

import pytest
import torch
from torch.testing import assert_close

from sparsercnn.fast import trained_linear
from sparsercnn.fast.trained_linear import TrainedDynamicLayer, linear, speed_up_dynamic_layers
from sparsercnn.modeling.head import DynamicLayer


def pair(dtype):
    torch.manual_seed(0)
    plain = torch.nn.Sequential(DynamicLayer(6, 20)).to(dtype)
    ours = copy.deepcopy(plain)
    speed_up_dynamic_layers(ours)
    return plain[0], ours[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("frozen", [None, "weight", "bias", "input"])
@pytest.mark.parametrize("used", [(0, 1), (1,)])
def test_dynamic_layer_equals_the_plain_one(dtype, frozen, used):
    results = []
    for layer in pair(dtype):
        x = torch.randn(2, 3, 6, dtype=dtype, generator=torch.Generator().manual_seed(1))
        leaves = {"input": x, "weight": layer.weight, "bias": layer.bias}
        for name, leaf in leaves.items():
            leaf.requires_grad_(name != frozen)
        outputs = layer(x)
        sum(outputs[i].square().sum() for i in used).backward()
        results.append([*outputs, *(leaf.grad for leaf in leaves.values())])
    for ours, plain in zip(*results, strict=True):
        if plain is None:
            assert ours is None
        else:
            assert_close(ours, plain)


def test_under_autocast_the_layer_is_the_plain_one():
    plain, ours = pair(torch.float32)
    assert type(ours) is TrainedDynamicLayer
    x = torch.randn(2, 3, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(ours(x), plain(x), rtol=0, atol=0)
        assert ours(x)[0].dtype == torch.bfloat16


@pytest.mark.parametrize("onednn", [True, False])
def test_linear(onednn):
    x, weight, bias = torch.randn(5, 6), torch.randn(4, 6), torch.randn(4)
    with mock.patch.object(trained_linear, "_has_onednn", return_value=onednn):
        for b in (bias, None):
            assert_close(linear(x, weight, b), torch.nn.functional.linear(x, weight, b))
