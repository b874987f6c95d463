"""RoI routing: levels of boxes, and what the three ways of routing make of the levels."""

import pytest
import torch
from torch.testing import assert_close

from sparsercnn.modeling.pooler import DetectronPooler, FusedPooler
from sparsercnn.modeling.roi_routing import AdaptiveRouting, LevelRouting, SoftRouting, assign_levels

from .test_pooler import STRIDES, pyramid, random_boxes, reference


def test_levels_match_the_reference_exactly():
    case, _, boxes = reference()
    levels = torch.cat([assign_levels(b, range(2, 6)) for b in boxes])
    assert torch.equal(levels - levels.min(), case["levels"] - case["levels"].min())


def test_levels_follow_the_canonical_box():
    sides = torch.tensor([111.9, 112.0, 223.9, 224.0, 448.0, 4000.0, 1.0])
    boxes = torch.stack([torch.zeros(7), torch.zeros(7), sides, sides], dim=1)
    assert assign_levels(boxes, range(2, 6)).tolist() == [2, 3, 3, 4, 5, 5, 2]
    assert assign_levels(boxes, range(3, 8)).tolist() == [3, 3, 3, 4, 5, 7, 3]
    assert assign_levels(boxes, range(2, 6), canonical_size=112).tolist() == [3, 4, 4, 5, 5, 5, 2]
    assert assign_levels(boxes, range(2, 6), canonical_level=3).tolist() == [2, 2, 2, 3, 4, 5, 2]


def test_boxes_without_area_read_the_lowest_level():
    boxes = torch.tensor([[50.0, 50, 50, 90], [9, 9, 3, 3], [9, 3, 3, 9], [0, 0, 0, 0]])
    assert assign_levels(boxes, range(3, 6)).tolist() == [3, 3, 3, 3]


@pytest.mark.parametrize("pooler", [FusedPooler, DetectronPooler])
def test_adaptive_routing_is_the_maximum_over_levels(pooler):
    torch.manual_seed(0)
    features, boxes = pyramid(channels=8), random_boxes(2, 5)
    pooler = pooler(STRIDES)
    routing = AdaptiveRouting(pooler, 8)
    pooled = pooler.pool_all_levels(pooler.prepare(features), boxes)
    maps = pooled.transpose(2, 3).unflatten(-1, (7, 7))
    expected = torch.stack([routing.adapt[i](maps[i]) for i in range(4)]).max(0).values.flatten(2).transpose(1, 2)
    assert_close(routing(routing.pooler.prepare(features), boxes), expected)


def test_soft_routing_weighs_each_level_by_a_sigmoid():
    features, boxes = pyramid(channels=8), random_boxes(2, 5)
    pooler = FusedPooler(STRIDES)
    routing = SoftRouting(pooler, 8)
    torch.nn.init.zeros_(routing.weights[-1].weight)
    torch.nn.init.zeros_(routing.weights[-1].bias)
    expected = pooler.pool_all_levels(pooler.prepare(features), boxes).sum(0) / 2
    assert_close(routing(routing.pooler.prepare(features), boxes), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("routing", [LevelRouting, AdaptiveRouting, SoftRouting])
def test_gradients_reach_every_parameter_and_level(routing):
    features = [f.requires_grad_() for f in pyramid()]
    routing = routing(FusedPooler(STRIDES), 8)
    boxes = torch.tensor([[[0.0, 0, 60, 60], [0, 0, 120, 120], [0, 0, 240, 240], [0, 0, 450, 450]]]).expand(2, -1, -1)
    routing(routing.pooler.prepare(features), boxes).square().sum().backward()
    assert all(f.grad.abs().sum() > 0 for f in features)
    assert all(p.grad.abs().sum() > 0 for p in routing.parameters())
