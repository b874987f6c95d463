"""The ways in which a convolution is computed for inference give what the plain convolution gives."""

import pytest
import torch
from detectron2.layers import Conv2d
from torch.nn import functional as F
from torch.testing import assert_close

from sparsercnn.fast.convolution import FastConv2d
from sparsercnn.fast.winograd import transform_filters, winograd_conv2d

CONVOLUTIONS = {
    "strided": dict(in_channels=8, out_channels=12, kernel_size=3, stride=2, padding=1),
    "grouped": dict(in_channels=8, out_channels=12, kernel_size=1, groups=4),
    "dilated": dict(in_channels=128, out_channels=128, kernel_size=3, padding=2, dilation=2),
    "1×1": dict(in_channels=8, out_channels=12, kernel_size=1),
    "strided 1×1": dict(in_channels=8, out_channels=12, kernel_size=1, stride=2),
    "Winograd": dict(in_channels=256, out_channels=258, kernel_size=3, padding=1),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_equals_the_convolution_and_what_follows_it(name, dtype, bias):
    torch.manual_seed(0)
    conv = Conv2d(**CONVOLUTIONS[name], bias=bias).to(dtype)
    assert FastConv2d(conv).is_winograd == (name == "Winograd")
    x = torch.randn(2, conv.in_channels, 13, 18).to(dtype, memory_format=torch.channels_last)
    plain = conv(x)
    close = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.02}
    assert_close(FastConv2d(conv)(x), plain, **close)
    assert_close(FastConv2d(conv, relu=True)(x), F.relu(plain), **close)
    residual = torch.randn_like(plain)
    expected = F.relu(plain + residual)
    assert_close(FastConv2d(conv, relu=True)(x, residual), expected, **close)


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


@pytest.mark.parametrize("winograd", [True, False])
@torch.no_grad()
def test_residuals_come_in_any_precision(winograd):
    conv = Conv2d(256, 256, 3, padding=1).bfloat16()
    x = torch.randn(1, 256, 8, 8).to(memory_format=torch.channels_last)
    y = FastConv2d(conv, winograd=winograd)(x, x.clone())
    assert y.dtype == torch.bfloat16
    assert_close(y, conv(x.bfloat16()) + x.bfloat16(), rtol=0.02, atol=0.02)


def test_winograd_needs_wider_layers_in_half_precision():
    conv = Conv2d(128, 128, 3, padding=1)
    assert FastConv2d(conv).is_winograd and not FastConv2d(conv.bfloat16()).is_winograd
    assert not FastConv2d(conv.float(), winograd=False).is_winograd


def test_winograd_keeps_the_contract_of_operators():
    x, weight, bias = torch.randn(1, 4, 9, 6), torch.randn(2, 4, 3, 3), torch.randn(2)
    torch.library.opcheck(winograd_conv2d, (x, transform_filters(weight), bias))
