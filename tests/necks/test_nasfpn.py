import pytest
import torch
from detectron2.layers import ShapeSpec
from torch import nn

from necks import NASFPN, NeckConfigError
from necks.nasfpn import MergingCells, gate, resize


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


def test_gate_is_the_second_map_plus_the_first_weighted_by_the_mean_of_the_second():
    a, b = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    expected = b + 1 / (1 + (-b.mean((2, 3), keepdim=True)).exp()) * a
    torch.testing.assert_close(gate(a, b, (4, 4)), expected)


def test_resize_takes_the_maximum_down_and_the_nearest_up():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert resize(x, (2, 2)).flatten().tolist() == [5, 7, 13, 15]
    assert resize(x, (8, 8))[0, 0, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert resize(x, (4, 4)) is x
    assert resize(x, (3, 5)).shape == (1, 1, 3, 5)


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


def test_cells_of_maps_of_one_pixel_follow_the_published_wiring():
    # On single positive pixels resizing, ReLU and pooling change nothing, so every cell is a formula of two numbers.
    inputs = pyramid(1, 1, 1, 1, 1)
    p3, p4, p5, p6, p7 = inputs
    inner4 = (p4 + p4.sigmoid() * p6) + p4
    out3 = inner4 + p3
    out4 = out3 + inner4
    out5 = p5 + out3 + out3.sigmoid() * out4
    out7 = p7 + inner4 + inner4.sigmoid() * out5
    out6 = out5 + out5.sigmoid() * out7
    for got, expected in zip(bare_cells()(inputs), [out3, out4, out5, out6, out7], strict=True):
        torch.testing.assert_close(got, expected)


def test_each_cell_convolves_after_relu():
    cells = MergingCells(channels=2, norm="BN").eval()
    negative = [-x.detach().float() - 1 for x in pyramid(16, 8, 4, 2, 1)]
    seen = []
    cells.output["gp_64_4"].register_forward_hook(lambda module, args, output: seen.append(args[0]))
    cells(negative)
    assert seen[0].eq(0).all()


def test_levels_are_completed_to_five():
    neck = NASFPN(shapes(3, 4, 5), out_channels=8, num_levels=5, stack=1)
    assert list(neck.output_shape()) == ["p3", "p4", "p5", "p6", "p7"]
    features = {
        name: torch.randn(1, 3, size, size) for name, size in zip(("res3", "res4", "res5"), (9, 5, 3), strict=True)
    }
    assert [p.shape[-1] for p in neck(features).values()] == [9, 5, 3, 2, 1]


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
    "levels, options, key",
    [
        (range(2, 8), {}, "MODEL.NECK.IN_FEATURES"),
        (range(2, 6), {"num_levels": 6}, "MODEL.NECK.NUM_LEVELS"),
        (range(2, 6), {"stack": 0}, "MODEL.NECK.NASFPN.STACK"),
    ],
)
def test_impossible_levels_are_named(levels, options, key):
    with pytest.raises(NeckConfigError, match=key):
        NASFPN(shapes(*levels), out_channels=8, **options)
