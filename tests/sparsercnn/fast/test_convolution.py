"""The ways in which a convolution is computed for inference give what the plain convolution gives."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from sparsercnn.fast.convolution import FastConv2d
from sparsercnn.fast.processor import has_onednn
from sparsercnn.fast.winograd import transform_filters, winograd_conv2d

needs_bfloat16 = pytest.mark.skipif(not has_onednn(torch.bfloat16), reason="needs a CPU that computes in bfloat16")
CONVOLUTIONS = {
    "strided": {"in_channels": 8, "out_channels": 12, "kernel_size": 3, "stride": 2, "padding": 1},
    "grouped": {"in_channels": 8, "out_channels": 12, "kernel_size": 1, "groups": 4},
    "depthwise": {"in_channels": 8, "out_channels": 8, "kernel_size": 5, "padding": 2, "groups": 8},
    "dilated": {"in_channels": 128, "out_channels": 128, "kernel_size": 3, "padding": 2, "dilation": 2},
    "1×1": {"in_channels": 8, "out_channels": 12, "kernel_size": 1},
    "oblong": {"in_channels": 8, "out_channels": 12, "kernel_size": (1, 5), "stride": (2, 1), "padding": (0, 2)},
    "Winograd": {"in_channels": 256, "out_channels": 258, "kernel_size": 3, "padding": 1},
}
ACTIVATIONS = {
    None: lambda y: y,
    "relu": F.relu,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda y: F.gelu(y, approximate="tanh"),
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}
CLOSE = {torch.float32: {"rtol": 1e-4, "atol": 1e-4}, torch.bfloat16: {"rtol": 0.02, "atol": 0.02}}


def convolution(name: str, dtype: torch.dtype, bias: bool = True) -> tuple[nn.Conv2d, torch.Tensor]:
    """A convolution and an input."""
    torch.manual_seed(0)
    conv = nn.Conv2d(**CONVOLUTIONS[name], bias=bias).to(dtype)
    return conv, torch.randn(2, conv.in_channels, 13, 18).to(dtype, memory_format=torch.channels_last)


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_bfloat16)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@torch.inference_mode()
def test_equals_the_convolution_and_what_follows_it(name, dtype, bias):
    conv, x = convolution(name, dtype, bias)
    plain, fast = conv(x), FastConv2d(conv)
    assert fast.is_winograd == (name == "Winograd")
    for activation, function in ACTIVATIONS.items():
        y = fast(x, activation=activation)
        assert y.is_contiguous(memory_format=torch.channels_last)
        assert_close(y, function(plain), **CLOSE[dtype])
    for activation in (None, "relu"):
        for overwrite in (True, False):
            addend = torch.randn_like(plain)
            kept = addend.clone()
            y = fast(x, addend, activation, overwrite)
            assert_close(y, ACTIVATIONS[activation](plain + kept), **CLOSE[dtype])
            assert overwrite or torch.equal(addend, kept)


@pytest.mark.parametrize("name", ["1×1", "Winograd"])
@torch.inference_mode()
def test_addends_broadcast(name):
    conv, x = convolution(name, torch.float32)
    for addend in (torch.randn(conv.out_channels, 1, 1), 0.5, torch.randn(3, 1, 1, 1, 18)):
        assert_close(FastConv2d(conv)(x, addend, "relu"), F.relu(conv(x) + addend), rtol=1e-4, atol=1e-4)


@needs_bfloat16
@pytest.mark.parametrize("winograd", [True, False])
@torch.inference_mode()
def test_inputs_and_addends_come_in_any_precision(winograd):
    conv, x = convolution("Winograd", torch.bfloat16)
    addend = torch.randn(2, 258, 13, 18)
    y = FastConv2d(conv, winograd)(x.float(), addend)
    assert y.dtype == torch.bfloat16
    assert_close(y, conv(x) + addend.bfloat16(), rtol=0.02, atol=0.02)


@torch.inference_mode()
def test_a_float32_convolution_may_hand_on_half_precision():
    conv, x = convolution("strided", torch.float32)
    assert torch.equal(FastConv2d(conv, output_dtype=torch.bfloat16)(x), FastConv2d(conv)(x).bfloat16())


@pytest.mark.parametrize("name", ["strided", "depthwise", "Winograd"])
@torch.inference_mode()
def test_can_be_copied_and_pickled(name):
    conv, x = convolution(name, torch.float32)
    fast = FastConv2d(conv)
    for again in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert torch.equal(again(x), fast(x))


@pytest.mark.parametrize("size", [(1, 1), (4, 8), (5, 7), (33, 90)])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-14), (torch.bfloat16, 7e-3)], ids=str)
@torch.no_grad()
def test_winograd_of_any_size(size, dtype, error):
    torch.manual_seed(0)
    x = torch.randn(2, 3, *size).to(dtype)
    weight, bias = torch.randn(5, 3, 3, 3).to(dtype), torch.randn(5).to(dtype)
    y = winograd_conv2d(x, transform_filters(weight), bias)
    assert y.is_contiguous(memory_format=torch.channels_last)
    expected = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    assert y.dtype == dtype and (y - expected).norm() < error * expected.norm()


def test_winograd_needs_wider_layers_in_half_precision():
    conv = nn.Conv2d(128, 128, 3, padding=1)
    assert FastConv2d(conv).is_winograd and not FastConv2d(conv.bfloat16()).is_winograd
    assert not FastConv2d(conv.float(), winograd=False).is_winograd


def test_winograd_keeps_the_contract_of_operators():
    x, weight, bias = torch.randn(1, 4, 9, 6), torch.randn(2, 4, 3, 3), torch.randn(2)
    torch.library.opcheck(winograd_conv2d, (x, transform_filters(weight), bias))
