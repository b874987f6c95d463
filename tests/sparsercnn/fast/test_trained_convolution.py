"""Convolutions of training: every way to compute them gives the results and gradients of the plain layers."""

import copy
from unittest import mock

import pytest
import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from sparsercnn.fast.trained_convolution import DIRECT, PRODUCT, WINOGRAD, TrainedConv2d, speed_up_convolutions
from sparsercnn.fast.winograd import read_windows
from sparsercnn.fast.winograd_gradients import input_gradient, weight_gradient

KERNELS = {
    "3×3": (DIRECT, {"kernel_size": 3, "padding": 1, "stride": 2, "groups": 2}),
    "1×1": (PRODUCT, {"kernel_size": 1}),
    "1×1, strided": (PRODUCT, {"kernel_size": 1, "stride": 2}),
    "1×1, padded": (DIRECT, {"kernel_size": 1, "padding": 1}),
    "wide 3×3": (WINOGRAD, {"kernel_size": 3, "padding": 1}),
}
NORMS = {"frozen": FrozenBatchNorm2d, "trained": nn.BatchNorm2d, "none": None}


def pair(bias=True, norm="none", channels=4, **kernel):
    """A plain convolution and ours."""
    torch.manual_seed(0)
    norm = NORMS[norm] and NORMS[norm](channels + 2)
    if norm is not None:
        norm.running_var.uniform_(0.5, 2)
        norm.running_mean.normal_()
    plain = Conv2d(channels, channels + 2, **kernel, bias=bias, norm=norm, activation=F.relu_)
    ours = copy.deepcopy(plain)
    speed_up_convolutions(ours)
    return plain, ours


def image(channels=4, size=(7, 9)):
    return torch.randn(2, channels, *size).to(memory_format=torch.channels_last)


def assert_same(plain, ours, x, **tolerance):
    inputs = [x.clone(memory_format=torch.preserve_format).requires_grad_() for _ in range(2)]
    outputs = [conv(own) for conv, own in zip((plain, ours), inputs, strict=True)]
    assert_close(outputs[1], outputs[0], **tolerance)
    for y in outputs:
        y.square().mean().backward()
    expected, found = (
        [own.grad, *(p.grad for p in conv.parameters())] for conv, own in zip((plain, ours), inputs, strict=True)
    )
    largest = max(g.norm() for g in expected)  # that of a bias before a norm is nothing but rounding
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm() + 1e-6 * largest


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("kernel", [name for name in KERNELS if name != "wide 3×3"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("bias", [False, True])
def test_equals_the_plain_layers(bias, norm, kernel, layout):
    algorithm, geometry = KERNELS[kernel]
    plain, ours = pair(bias, norm, **geometry)
    x = image().to(memory_format=layout)
    assert ours._algorithm(x) is (algorithm if layout is torch.channels_last else DIRECT)
    assert_same(plain, ours, x)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("bias", [False, True])
def test_wide_convolutions_equal_the_plain_layers(bias, norm):
    algorithm, geometry = KERNELS["wide 3×3"]
    plain, ours = pair(bias, norm, channels=128, **geometry)
    x = image(128, (49, 50))
    assert ours._algorithm(x) is algorithm
    assert_same(plain, ours, x, rtol=1e-4, atol=1e-4)


def test_when_winograd_is_used():
    _, ours = pair(channels=128, kernel_size=3, padding=1)
    x = image(128, (49, 50))
    assert ours._algorithm(x) is WINOGRAD
    assert ours._algorithm(x[:1]) is DIRECT  # too few tiles
    assert ours._algorithm(x.contiguous()) is DIRECT
    with torch.autocast("cpu", torch.bfloat16):
        assert ours._algorithm(x) is DIRECT
    ours.uses_cpu_kernels = False
    assert ours._algorithm(x) is DIRECT
    ours.uses_cpu_kernels = True
    assert ours.double()._algorithm(x.double()) is DIRECT
    wide = TrainedConv2d(256, 256, 3, padding=1).bfloat16()
    wide.uses_cpu_kernels = True
    assert wide._algorithm(image(256, (64, 64)).bfloat16()) is DIRECT  # gradients are sums over many tiles


def test_a_switched_off_fold_leaves_the_norm():
    plain, ours = pair(norm="frozen", kernel_size=1)
    ours.folds_norm = False
    with mock.patch.object(FrozenBatchNorm2d, "forward", return_value=torch.full((1,), 3.0)):
        assert ours(image()) == 3
    assert_same(plain, ours, image())


def test_a_folded_norm_does_not_go_over_the_activations():
    _, ours = pair(norm="frozen", kernel_size=1)
    with mock.patch.object(FrozenBatchNorm2d, "forward", side_effect=AssertionError("went over the activations")):
        ours(image())


def test_a_folded_norm_keeps_no_second_weight():
    _, conv = pair(norm="frozen", bias=False, kernel_size=3)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        conv(torch.randn(2, 4, 7, 9, requires_grad=True))
    assert [t.data_ptr() for t in kept if t.shape == conv.weight.shape] == [conv.weight.data_ptr()]


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
