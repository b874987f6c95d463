"""Anchors: sizes, shapes, places, and what is said about them."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator, build_anchor_generator
from torch.testing import assert_close

# Ratios 1/4, 1 and 4 of sizes 32 and 64.
AROUND_ORIGIN = torch.tensor(
    [
        [-32.0, -8, 32, 8],
        [-16.0, -16, 16, 16],
        [-8.0, -32, 8, 32],
        [-64.0, -16, 64, 16],
        [-32.0, -32, 32, 32],
        [-16.0, -64, 16, 64],
    ]
)
RIGHT = torch.tensor([4.0, 0, 4, 0])


def test_anchors_from_a_config_start_at_the_corner():
    cfg = get_cfg()
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32, 64]]
    cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [[0.25, 1, 4]]
    generator = build_anchor_generator(cfg, [ShapeSpec(stride=4)])
    assert isinstance(generator, DefaultAnchorGenerator) and generator.box_dim == 4
    assert generator.num_anchors == generator.num_cell_anchors == [6]
    (anchors,) = generator([torch.rand(2, 96, 1, 2)])
    assert_close(anchors.tensor, torch.cat([AROUND_ORIGIN, AROUND_ORIGIN + RIGHT]))


def test_explicit_anchors_are_centered_in_their_cells_and_scriptable():
    generator = DefaultAnchorGenerator(sizes=[32, 64], aspect_ratios=[0.25, 1, 4], strides=[4])
    feature = torch.rand(2, 96, 1, 2)
    (anchors,) = generator([feature])
    assert_close(anchors.tensor, torch.cat([AROUND_ORIGIN + 2, AROUND_ORIGIN + 2 + RIGHT]))
    (scripted,) = torch.jit.script(generator)([feature])
    assert torch.equal(scripted.tensor, anchors.tensor)


def test_cells_follow_rows_and_each_level_has_its_sizes():
    generator = DefaultAnchorGenerator(sizes=[[8], [16]], aspect_ratios=[[1.0]], strides=[4, 8], offset=0.0)
    fine, coarse = generator([torch.rand(1, 1, 2, 3), torch.rand(1, 1, 1, 2)])
    assert fine.get_centers().tolist() == [[0, 0], [4, 0], [8, 0], [0, 4], [4, 4], [8, 4]]
    assert fine.area().unique().tolist() == [64]
    assert coarse.get_centers().tolist() == [[0, 0], [8, 0]]
    assert coarse.area().unique().tolist() == [256]


def test_areas_and_ratios_for_any_size():
    generator = DefaultAnchorGenerator(sizes=[[10, 33]], aspect_ratios=[[0.3, 1, 2.5]], strides=[1])
    width, height = (generator.generate_cell_anchors([10, 33], [0.3, 1, 2.5]).unflatten(1, (2, 2)).diff(dim=1)[:, 0]).T
    assert_close(width * height, torch.tensor([100.0] * 3 + [1089.0] * 3))
    assert_close(height / width, torch.tensor([0.3, 1, 2.5] * 2))


def test_anchors_are_not_part_of_the_state_dict():
    generator = DefaultAnchorGenerator(sizes=[[8]], aspect_ratios=[[1.0]], strides=[4])
    assert generator.state_dict() == {}
    assert [name for name, _ in generator.named_buffers()] == ["cell_anchors.0"]
    assert generator.to(torch.float64).cell_anchors._buffers["0"].dtype == torch.float64  # they move with the model


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"sizes": [[8], [16], [32]]}, "length 3 .* number of input features is 2"),
        ({"sizes": []}, "sizes .* cannot be empty"),
        ({"aspect_ratios": 1.0}, "aspect_ratios .* has to be a list"),
        ({"offset": 1.0}, "1.0"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(AssertionError, match=message):
        DefaultAnchorGenerator(**{"sizes": [[8]], "aspect_ratios": [[1.0]], "strides": [4, 8], **arguments})
