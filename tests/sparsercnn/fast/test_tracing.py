"""A traced network computes what the network computes, whatever Python decides on the way."""

import copy
import pickle

import pytest
import torch
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import Backbone
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from sparsercnn.fast.tracing import TracedBackbone, trace, trace_networks

from .graphs import calls_of


def grow(x, size):
    """Decides by sizes."""
    return x if x.shape[-1] == size else F.interpolate(x, size=(size, size))


class Decides(nn.Module):
    """A function that decides by sizes, called by its name and through an attribute, between convolutions."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.resize = grow

    def forward(self, x):
        assert x.dim() == 4, "a batch of images"
        if x.shape[1] != 3:
            raise ValueError("three channels")
        return self.second(grow(self.resize(self.first(x), 8), 12))


class Unpredictable(nn.Module):
    """A layer whose own code needs values."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return self.conv(x) if x.sum() > 0 else -x


class Around(nn.Module):
    def __init__(self):
        super().__init__()
        self.before, self.inner, self.after = nn.Conv2d(3, 4, 1), Unpredictable(), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return {"out": self.after(self.inner(self.before(x)))}


@pytest.mark.parametrize("size", [8, 9, 12])
@torch.no_grad()
def test_functions_that_decide_become_calls(size):
    torch.manual_seed(0)
    module, x = Decides(), torch.randn(2, 3, size, size)
    traced = trace(module)
    assert_close(traced(x), module(x), rtol=0, atol=0)
    assert calls_of(traced) == {"Conv2d": 2, "grow": 2}
    assert module.resize is grow and Decides.forward.__globals__["grow"] is grow


@torch.no_grad()
def test_modules_that_decide_become_calls_and_their_parts_are_traced():
    torch.manual_seed(0)
    module = Around()
    expected = [module(sign * torch.ones(1, 3, 4, 4))["out"] for sign in (-1, 1)]
    traced = trace_networks(module)
    for sign, wanted in zip((-1, 1), expected, strict=True):
        assert_close(traced(sign * torch.ones(1, 3, 4, 4))["out"], wanted, rtol=0, atol=0)
    assert calls_of(traced) == {"Conv2d": 3, "Unpredictable": 1}


def test_a_model_whose_own_code_decides_keeps_its_parts():
    model = Unpredictable()
    assert trace(model) is None
    assert trace_networks(model) is model and type(model.conv) is nn.Conv2d
    assert calls_of(model) == {"Conv2d": 1}


def test_detectron2_convolutions_fall_apart():
    def make():
        return Conv2d(3, 8, 3, norm=get_norm("GN", 32) if False else nn.GroupNorm(2, 8), activation=F.silu)

    traced = trace(nn.Sequential(make()))
    assert calls_of(traced) == {"Conv2d": 1, "GroupNorm": 1, "silu": 1}


class WritesTwice(nn.Module):
    """Reads what it has written over."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        y = self.conv(x)
        F.relu_(y)
        return y


class WritesPart(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        y = self.conv(x)
        y[:, :2].mul_(2)
        return y + 1


class SetsAttribute(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        y = self.conv(x)
        y.note = 1
        return y


@pytest.mark.parametrize("kind", [WritesTwice, WritesPart, SetsAttribute])
@torch.no_grad()
def test_what_no_graph_of_calls_can_express_is_left_alone(kind):
    module, x = kind(), torch.randn(1, 3, 5, 5)
    assert trace(module) is None
    expected = module(x)
    assert_close(trace_networks(module)(x), expected, rtol=0, atol=0)


class Levels(Backbone):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)

    def forward(self, x):
        return {"p1": self.conv(x)}

    def output_shape(self):
        return {"p1": ShapeSpec(channels=4, stride=2)}

    @property
    def size_divisibility(self):
        return 2

    @property
    def padding_constraints(self):
        return {"square_size": 64}


@torch.no_grad()
def test_backbones_keep_their_contract():
    backbone, x = Levels(), torch.randn(1, 3, 6, 6)
    traced = trace_networks(backbone)
    assert isinstance(traced, TracedBackbone)
    assert (traced.output_shape(), traced.size_divisibility, traced.padding_constraints) == (
        backbone.output_shape(),
        2,
        {"square_size": 64},
    )
    for again in (traced, copy.deepcopy(traced), pickle.loads(pickle.dumps(traced))):
        assert_close(again(x)["p1"], backbone(x)["p1"], rtol=0, atol=0)
