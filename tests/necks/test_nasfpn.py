"""NAS-FPN's resampling, gate and wiring."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from torch import nn

from necks import NASFPN
from necks.nasfpn import MergingCells, gate, resample

from . import plain


def shapes(*levels: int) -> dict[str, ShapeSpec]:
    return {f"res{level}": ShapeSpec(channels=3, stride=2**level) for level in levels}


def bare_cells() -> MergingCells:
    """Cells that only merge: the convolution after the ReLU passes its input on."""
    cells = MergingCells(channels=2).double()
    cells.output = nn.ModuleDict({cell: nn.Identity() for cell in cells.output})
    return cells


def pyramid(*sizes: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(1, 2, size, size, generator=generator, dtype=torch.float64).requires_grad_() for size in sizes]


def test_gate_weighs_the_lower_map_by_the_maximum_of_the_higher():
    higher, lower = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    weight = plain.sigmoid(higher.flatten(2).max(dim=2).values)[..., None, None]
    torch.testing.assert_close(gate(higher, lower), higher + lower * weight)


def test_resampling_repeats_cells_up_and_takes_their_maximum_down():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert resample(x, 3, 4, (2, 2)).flatten().tolist() == [5, 7, 13, 15]
    assert resample(x, 4, 3, (8, 8))[0, 0, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert resample(x, 3, 3, (4, 4)) is x


def test_cells_stay_over_their_pixels_where_the_size_is_no_multiple():
    # 11 cells of level 3, so 6, 3, 2, 1 of the levels above; cell j of level k holds the columns from 2**(k - 3) · j.
    columns = torch.arange(11.0).view(1, 1, 1, 11)
    assert resample(columns, 3, 5, (1, 3)).flatten().tolist() == [3, 7, 10]
    assert resample(columns, 3, 6, (1, 2)).flatten().tolist() == [7, 10]
    assert resample(torch.arange(2.0).view(1, 1, 1, 2), 6, 3, (1, 11)).flatten().tolist() == [0] * 8 + [1] * 3
    negative = -columns - 1
    assert resample(negative, 3, 5, (1, 3)).flatten().tolist() == [-1, -5, -9]


@pytest.mark.parametrize("sizes", plain.SIZES.values(), ids=plain.SIZES)
def test_formula(sizes):
    neck = plain.randomize(NASFPN(shapes(3, 4, 5), 4, num_levels=5, norm="BN", stack=2)).eval()
    features = plain.random_features(shapes(3, 4, 5), sizes)
    maps = [plain.batch_norm(e.norm, plain.conv(e, x)) for e, x in zip(neck.lateral, features.values(), strict=True)]
    for _ in range(2):
        maps.append(down(maps[-1], 1))
    for layer in neck.layers:
        maps = merge(layer.output, *maps)
    for result, expected in zip(neck(features).values(), maps, strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


def merge(output, p3, p4, p5, p6, p7):
    """One layer of the published network, cell by cell."""

    def finish(cell, x):
        return plain.batch_norm(output[cell].norm, plain.conv(output[cell], x.clamp(min=0)))

    def gp(higher, lower):
        return higher + lower * plain.sigmoid(higher.flatten(2).max(dim=2).values)[..., None, None]

    first4 = finish("gp_64_4", gp(up(p6, 2, p4), p4))
    inner4 = finish("sum_44_4", first4 + p4)
    out3 = finish("sum_43_3", up(inner4, 1, p3) + p3)
    out4 = finish("sum_34_4", down(out3, 1) + inner4)
    out5 = finish("gp_43_5", gp(down(out4, 1), down(out3, 2)) + p5)
    out7 = finish("gp_54_7", gp(down(out5, 2), down(inner4, 3)) + p7)
    out6 = finish("gp_75_6", gp(up(out7, 1, p6), down(out5, 1)))
    return out3, out4, out5, out6, out7


def up(x, steps, like):
    """Every cell 2**steps times along both axes, as many as `like` has."""
    repeated = x.repeat_interleave(2**steps, dim=-2).repeat_interleave(2**steps, dim=-1)
    return repeated[..., : like.shape[-2], : like.shape[-1]]


def down(x, steps):
    """The maximum of blocks of 2**steps cells along both axes, those at the border incomplete."""
    rows, columns = (torch.arange(length).split(2**steps) for length in x.shape[-2:])
    return torch.stack([torch.stack([x[..., r, :][..., c].amax((-2, -1)) for c in columns], -1) for r in rows], -2)


@pytest.mark.parametrize(
    "output, read",
    [(0, {3, 4, 6}), (1, {3, 4, 6}), (2, {3, 4, 5, 6}), (3, {3, 4, 5, 6, 7}), (4, {3, 4, 5, 6, 7})],
    ids=["p3", "p4", "p5", "p6", "p7"],
)
def test_which_inputs_reach_which_output(output, read):
    inputs = pyramid(16, 8, 4, 2, 1)
    bare_cells()(inputs)[output].sum().backward()
    reached = {level for level, x in zip(range(3, 8), inputs, strict=True) if x.grad is not None and x.grad.any()}
    assert reached == read


def test_levels_are_completed_to_five():
    neck = NASFPN(shapes(3, 4, 5), out_channels=8, num_levels=5, stack=1)
    assert list(neck.output_shape()) == ["p3", "p4", "p5", "p6", "p7"]
    features = {
        name: torch.randn(1, 3, size, size) for name, size in zip(("res3", "res4", "res5"), (9, 5, 3), strict=True)
    }
    assert [p.shape[-1] for p in neck(features).values()] == [9, 5, 3, 2, 1]


def test_levels_that_round_down():
    features = {f"res{i + 3}": torch.randn(1, 3, size, size) for i, size in enumerate((13, 6, 3))}
    assert [p.shape[-1] for p in NASFPN(shapes(3, 4, 5), 8, stack=1)(features).values()] == [13, 6, 3]


def test_fewer_levels_are_the_lowest_of_five():
    five, four = (NASFPN(shapes(2, 3, 4, 5), out_channels=8, num_levels=n, stack=2) for n in (5, 0))
    four.load_state_dict(five.state_dict())
    features = {f"res{i + 2}": torch.randn(1, 3, size, size) for i, size in enumerate((17, 9, 5, 3))}
    expected = five(features)
    assert expected.popitem()[0] == "p6"
    torch.testing.assert_close(four(features), expected)


@pytest.mark.parametrize("count", range(1, 6))
def test_cells_for_fewer_outputs_make_the_lowest_of_five(count):
    five, fewer = MergingCells(channels=2).double(), MergingCells(channels=2, num_outputs=count).double()
    fewer.load_state_dict({name: five.state_dict()[name] for name in fewer.state_dict()})
    inputs = pyramid(16, 8, 4, 2, 1)
    got = fewer(inputs)
    for ours, expected in zip(got, five(inputs)[:count], strict=True):
        torch.testing.assert_close(ours, expected)
    sum(x.sum() for x in got).backward()
    assert not [name for name, p in fewer.named_parameters() if p.grad is None]


@pytest.mark.parametrize(
    "levels, options, message",
    [
        (range(2, 8), {}, "input_shapes has 6 levels; .* at most 5"),
        (range(2, 6), {"num_levels": 6}, "num_levels is 6; .* at most 5"),
        (range(2, 6), {"stack": 0}, "stack is 0; it must be at least 1"),
    ],
)
def test_impossible_levels_are_named(levels, options, message):
    with pytest.raises(ValueError, match=message):
        NASFPN(shapes(*levels), out_channels=8, **options)
