"""The layers of secondary features alignment against reference numbers and their formulas."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from necks import ESD1, ESD2, SNI, GSConv, GSConvE1, GSConvE2
from necks.sa_layers import shuffle_halves

GOLDEN = Path(__file__).parents[1] / "golden" / "sa_layers.npz"

LAYERS = {
    "sni_x2": lambda: SNI(scale_factor=2),
    "sni_x4": lambda: SNI(scale_factor=4),
    "esd1_same": lambda: ESD1(8, 8),
    "esd1_double": lambda: ESD1(8, 16),
    "esd2": lambda: ESD2(8, 16),
    "gsconv": lambda: GSConv(8, 16, kernel_size=3, stride=1),
    "gsconv_s2": lambda: GSConv(8, 16, kernel_size=3, stride=2),
    "gsconve1": lambda: GSConvE1(8, 16, kernel_size=3, stride=1),
    "gsconve1_s2": lambda: GSConvE1(8, 16, kernel_size=3, stride=2),
}


@pytest.mark.parametrize("case", LAYERS)
def test_reference_numbers(case):
    golden = {key: torch.from_numpy(value) for key, value in np.load(GOLDEN).items() if key.startswith(f"{case}/")}
    layer = LAYERS[case]().eval()
    prefix = f"{case}/weight/"
    weights = {key.removeprefix(prefix): value for key, value in golden.items() if key.startswith(prefix)}
    counters = {key: value for key, value in layer.state_dict().items() if key.endswith("num_batches_tracked")}
    layer.load_state_dict(weights | counters)
    torch.testing.assert_close(layer(golden[f"{case}/input"]), golden[f"{case}/output"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_shuffle_keeps_the_layout(device, layout):
    x = torch.rand(2, 6, 3, 5).contiguous(memory_format=layout)
    shuffled = shuffle_halves(x.to(device))
    assert shuffled.shape == x.shape and shuffled.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_shuffle_is_the_same_on_every_device(layout):
    class Elsewhere(torch.Tensor):
        """A map that says it is not on the CPU."""

        device = torch.device("meta")

    x = torch.rand(2, 6, 3, 5).contiguous(memory_format=layout)
    assert torch.equal(shuffle_halves(x), x[:, [0, 3, 1, 4, 2, 5]])
    assert torch.equal(shuffle_halves(x.as_subclass(Elsewhere)).as_subclass(torch.Tensor), shuffle_halves(x))


def test_sni_keeps_the_total_of_a_map():
    x = torch.rand(1, 2, 3, 5)
    torch.testing.assert_close(SNI(4)(x).sum(), x.sum())


@pytest.mark.parametrize("layer", [ESD1(4, 4), ESD1(4, 8), ESD2(4, 6)], ids=["same", "double", "esd2"])
@pytest.mark.parametrize("size", [(1, 1), (7, 10), (13, 5)])
def test_esd_rounds_odd_sizes_up(layer, size):
    out = layer.eval()(torch.rand(2, 4, *size))
    assert out.shape[-2:] == (-(-size[0] // 2), -(-size[1] // 2))
    assert out.isfinite().all()


def test_gsconve2_interleaves_the_halves_of_four_branches():
    layer = GSConvE2(3, 8, kernel_size=3, stride=2).eval()
    x = torch.rand(2, 3, 20, 22)
    primary = layer.primary(x)
    branches = [primary, *(branch(primary) for branch in layer.auxiliary)]
    assert [branch.conv.kernel_size for branch in layer.auxiliary] == [(9, 9), (13, 13), (17, 17)]
    assert all(isinstance(branch.conv, nn.Conv2d) and branch.conv.groups == 2 for branch in layer.auxiliary)
    out = layer(x)
    assert out.shape == (2, 8, 10, 11)
    torch.testing.assert_close(out[:, 0::2], torch.cat(branches[:2], dim=1))
    torch.testing.assert_close(out[:, 1::2], torch.cat(branches[2:], dim=1))


@pytest.mark.parametrize("make", [lambda: GSConv(4, 7), lambda: GSConvE2(4, 6), lambda: ESD1(4, 6)])
def test_impossible_channels_are_explained(make):
    with pytest.raises(ValueError, match="^out_channels is .; .*must be"):
        make()
