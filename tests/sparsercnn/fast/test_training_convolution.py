"""Wide convolutions of training by Winograd's algorithm: the results and gradients of the plain layers."""

import copy
from unittest import mock

import pytest
import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from sparsercnn.fast.training_convolution import WinogradConv2d, use_winograd_in_training
from sparsercnn.fast.winograd import read_windows
from sparsercnn.fast.winograd_gradients import input_gradient, weight_gradient

NORMS = {"frozen": FrozenBatchNorm2d, "trained": nn.BatchNorm2d, "none": None}


def pair(bias=True, norm="none", channels=128, **options):
    """A model of one plain convolution, and the same prepared."""
    torch.manual_seed(0)
    norm = NORMS[norm] and NORMS[norm](channels + 2)
    if norm is not None:
        norm.running_var.uniform_(0.5, 2)
        norm.running_mean.normal_()
    options = {"kernel_size": 3, "padding": 1, **options}
    plain = nn.Sequential(Conv2d(channels, channels + 2, **options, bias=bias, norm=norm, activation=F.relu_))
    ours = copy.deepcopy(plain)
    use_winograd_in_training(ours)
    return plain, ours


def image(channels=128, size=(49, 50)):
    return torch.randn(2, channels, *size).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("bias", [False, True])
def test_equals_the_plain_layers(bias, norm):
    plain, ours = pair(bias, norm)
    x = image()
    assert isinstance(ours[0], WinogradConv2d) and ours[0].is_faster(x)
    assert list(ours.state_dict()) == list(plain.state_dict())
    inputs = [x.clone(memory_format=torch.preserve_format).requires_grad_() for _ in range(2)]
    outputs = [conv(own) for conv, own in zip((plain, ours), inputs, strict=True)]
    assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-4)
    for y in outputs:
        y.square().mean().backward()
    expected, found = (
        [own.grad, *(p.grad for p in conv.parameters())] for conv, own in zip((plain, ours), inputs, strict=True)
    )
    largest = max(g.norm() for g in expected)  # that of a bias before a norm is nothing but rounding
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm() + 1e-6 * largest


@pytest.mark.parametrize(
    "options", [{"stride": 2}, {"padding": 0}, {"groups": 2}, {"dilation": 2, "padding": 2}, {"channels": 64}], ids=str
)
def test_other_convolutions_stay(options):
    plain, ours = pair(**options)
    assert type(ours[0]) is Conv2d


def test_when_it_is_faster():
    _, (conv,) = pair()
    x = image()
    assert conv.is_faster(x)
    assert not conv.is_faster(x[:1])  # too few tiles
    assert not conv.is_faster(x.contiguous())
    with torch.autocast("cpu", torch.bfloat16):
        assert not conv.is_faster(x)
    assert not conv.double().is_faster(x.double())
    wide = WinogradConv2d(Conv2d(256, 256, 3, padding=1)).bfloat16()
    assert not wide.is_faster(image(256, (64, 64)).bfloat16())  # gradients are sums over many tiles


def test_where_it_is_not_faster_it_is_a_plain_convolution():
    plain, ours = pair(norm="trained")
    x = image(size=(5, 6))
    assert not ours[0].is_faster(x)
    assert_close(ours(x), plain(x))


def test_parameters_are_those_of_the_convolution():
    conv = Conv2d(128, 128, 3, padding=1)
    ours = WinogradConv2d(conv)
    assert ours.weight is conv.weight and ours.bias is conv.bias


@pytest.mark.parametrize("size", [(1, 1), (4, 8), (5, 7), (33, 90)])
@pytest.mark.parametrize("share", [0.0, 0.01, 1.0])
def test_winograd_gradients_of_any_size(size, share):
    torch.manual_seed(0)
    x = torch.randn(2, 3, *size, dtype=torch.float64).to(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(5, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    y = F.conv2d(x, weight, padding=1)
    grad = torch.randn_like(y) * (torch.rand(2, 1, *size) < share)
    expected = torch.autograd.grad(y, [x, weight], grad)
    assert_close(input_gradient(grad, weight.detach()), expected[0], rtol=1e-10, atol=1e-10)
    assert_close(weight_gradient(grad, x.detach()), expected[1], rtol=1e-10, atol=1e-10)


def test_winograd_gradients_skip_what_no_gradient_reaches():
    x = torch.ones(1, 2, 64, 64).to(memory_format=torch.channels_last)
    grad = torch.zeros_like(x)
    grad[..., 3, 4] = 1
    with mock.patch("sparsercnn.fast.winograd_gradients.read_windows", wraps=read_windows) as read:
        weight_gradient(grad, x)
        assert [call.args[1].shape for call in read.call_args_list] == [(1, 6, 6), (1, 4, 4)]
    with mock.patch("sparsercnn.fast.winograd.read_windows", wraps=read_windows) as read:
        input_gradient(grad, torch.ones(2, 2, 3, 3))
        assert [call.args[1].shape for call in read.call_args_list] == [(4, 6, 6)]  # it lies in the corner of a tile


def test_winograd_gradients_show_what_is_not_a_number():
    x = torch.ones(1, 2, 8, 8).to(memory_format=torch.channels_last)
    grad = torch.zeros_like(x)
    grad[..., 3, 4] = torch.nan
    assert weight_gradient(grad, x).isnan().any() and input_gradient(grad, torch.ones(2, 2, 3, 3)).isnan().any()
