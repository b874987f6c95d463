"""RoI routing: levels and features against reference numbers and detectron2's pooler, and hostile boxes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from sparsercnn.modeling.roi_routing import (
    AdaptiveRouting,
    DetectronPooler,
    FusedPooler,
    LevelRouting,
    SoftRouting,
    assign_levels,
)

from ..golden import load

STRIDES = [4, 8, 16, 32]


def reference():
    case = load("roi_pooler")
    features = [case[f"input/p{k}"].clone().requires_grad_() for k in range(2, 6)]
    return case, features, [case["input/boxes/0"], case["input/boxes/1"]]


def batch(boxes: list[torch.Tensor]) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(boxes, batch_first=True)


def pyramid(images=2, channels=8, size=(64, 96), seed=0):
    torch.manual_seed(seed)
    return [torch.randn(images, channels, -(-size[0] * 4 // s), -(-size[1] * 4 // s)) for s in STRIDES]


def random_boxes(images, number, width=384, height=256):
    torch.manual_seed(1)
    corners = torch.rand(images, number, 2, 2) * 1.4 - 0.2
    corners = corners.sort(dim=2).values * torch.tensor([width, height])
    return corners.flatten(2)


def test_levels_match_the_reference_exactly():
    case, _, boxes = reference()
    levels = torch.cat([assign_levels(b, range(2, 6)) for b in boxes])
    assert torch.equal(levels - levels.min(), case["levels"] - case["levels"].min())


def test_features_and_gradients_match_the_reference():
    case, features, boxes = reference()
    pooler = FusedPooler(STRIDES)
    pooled = pooler.pool(pooler.prepare(features), batch(boxes)).unflatten(0, (2, -1))
    pooled = torch.cat([pooled[i, : len(b)] for i, b in enumerate(boxes)])
    pooled = pooled.transpose(1, 2).unflatten(-1, (7, 7))
    assert_close(pooled, case["output"], rtol=1e-4, atol=1e-4)
    pooled.backward(case["grad_output"])
    for k, f in zip(range(2, 6), features, strict=True):
        assert_close(f.grad, case[f"grad/p{k}"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("ratio", [1, 2, 3])
@pytest.mark.parametrize("resolution", [7, 5])
def test_fused_equals_roi_pooler(ratio, resolution):
    features, boxes = pyramid(), random_boxes(2, 50)
    outputs, gradients = [], []
    for kind in (FusedPooler, DetectronPooler):
        pooler = kind(STRIDES, resolution=resolution, sampling_ratio=ratio)
        leaves = [f.clone().requires_grad_() for f in features]
        pooled = pooler.pool(pooler.prepare(leaves), boxes)
        pooled.square().sum().backward()
        outputs.append(pooled)
        gradients.append([f.grad for f in leaves])
    assert_close(*outputs, rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(*gradients, strict=True):
        assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_every_level_of_both_poolers():
    features, boxes = pyramid(), random_boxes(2, 20)
    ours, theirs = (
        p.pool_all_levels(p.prepare(features), boxes) for p in (FusedPooler(STRIDES), DetectronPooler(STRIDES))
    )
    assert ours.shape == (4, 40, 49, 8)
    assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_channels_last_gives_the_same():
    features, boxes = pyramid(), random_boxes(2, 20)
    pooler = FusedPooler(STRIDES)
    expected = pooler.pool(pooler.prepare(features), boxes)
    features = [f.contiguous(memory_format=torch.channels_last) for f in features]
    assert torch.equal(pooler.pool(pooler.prepare(features), boxes), expected)


coordinate = st.floats(width=32, allow_nan=True, allow_infinity=True)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(coordinate, coordinate, coordinate, coordinate), min_size=1, max_size=4))
def test_any_box_pools_without_an_error(boxes):
    """Infinite, NaN, inverted and far-away boxes read zeros or pixels, never memory outside the pyramid."""
    pooler = FusedPooler(STRIDES)
    pooled = pooler.pool(pooler.prepare(pyramid(images=1)), torch.tensor([boxes]))
    assert torch.isfinite(pooled).all()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(*[st.floats(-500, 900, width=32)] * 4), min_size=1, max_size=6))
def test_ordered_boxes_equal_roi_pooler(corners):
    boxes = torch.tensor(corners).view(-1, 2, 2).sort(dim=1).values.flatten(1)[None]
    features = pyramid(images=1, channels=3)
    ours, theirs = (p.pool(p.prepare(features), boxes) for p in (FusedPooler(STRIDES), DetectronPooler(STRIDES)))
    assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_no_boxes():
    features = pyramid()
    pooler = FusedPooler(STRIDES)
    assert pooler.pool(pooler.prepare(features), torch.zeros(2, 0, 4)).shape == (0, 49, 8)


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
    routing = AdaptiveRouting(pooler, 8, 4)
    pooled = pooler.pool_all_levels(pooler.prepare(features), boxes)
    expected = torch.stack([routing.linear[i](pooled[i]).relu() for i in range(4)]).max(0).values
    assert_close(routing(routing.prepare(features), boxes), expected)


def test_soft_routing_with_equal_weights_is_the_mean_over_levels():
    features, boxes = pyramid(channels=8), random_boxes(2, 5)
    pooler = FusedPooler(STRIDES)
    routing = SoftRouting(pooler, 8, 4)
    torch.nn.init.zeros_(routing.weights[-1].weight)
    torch.nn.init.zeros_(routing.weights[-1].bias)
    expected = pooler.pool_all_levels(pooler.prepare(features), boxes).mean(0)
    assert_close(routing(routing.prepare(features), boxes), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("routing", [LevelRouting, AdaptiveRouting, SoftRouting])
def test_gradients_reach_every_parameter_and_level(routing):
    features = [f.requires_grad_() for f in pyramid()]
    routing = routing(FusedPooler(STRIDES), 8, 4)
    boxes = torch.tensor([[[0.0, 0, 60, 60], [0, 0, 120, 120], [0, 0, 240, 240], [0, 0, 450, 450]]]).expand(2, -1, -1)
    routing(routing.prepare(features), boxes).square().sum().backward()
    assert all(f.grad.abs().sum() > 0 for f in features)
    assert all(p.grad.abs().sum() > 0 for p in routing.parameters())


def test_gradients_of_half_precision_features():
    features = [f.bfloat16().requires_grad_() for f in pyramid()]
    exact = [f.detach().float().requires_grad_() for f in features]
    boxes, gradients = random_boxes(2, 40), []
    for maps in (features, exact):
        pooler = FusedPooler(STRIDES)
        table = pooler.prepare(maps)
        pooled = torch.cat([pooler.pool(table, boxes) for _ in range(3)])
        gradients.append(torch.autograd.grad(pooled.float().square().sum(), maps))
    for ours, expected in zip(*gradients, strict=True):
        assert ours.dtype == torch.bfloat16
        assert_close(ours.float(), expected, rtol=2e-2, atol=2e-2)
