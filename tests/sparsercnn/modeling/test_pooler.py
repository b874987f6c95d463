"""Pooling: features and gradients against reference numbers and detectron2's pooler, and hostile boxes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from sparsercnn.modeling.pooler import DetectronPooler, FusedPooler
from sparsercnn.modeling.roi_routing import ROUTINGS, assign_levels

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


def levels_of(boxes):
    return assign_levels(boxes, range(2, 6)) - 2


def pool(pooler, features, boxes):
    return pooler.pool(pooler.prepare(features), boxes, levels_of(boxes))


def test_features_and_gradients_match_the_reference():
    case, features, boxes = reference()
    pooler = FusedPooler(STRIDES)
    pooled = pool(pooler, features, batch(boxes)).unflatten(0, (2, -1))
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
        pooled = pool(pooler, leaves, boxes)
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
    expected = pool(pooler, features, boxes)
    features = [f.contiguous(memory_format=torch.channels_last) for f in features]
    assert torch.equal(pool(pooler, features, boxes), expected)


coordinate = st.floats(width=32, allow_nan=True, allow_infinity=True)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(coordinate, coordinate, coordinate, coordinate), min_size=1, max_size=4))
def test_any_box_pools_without_an_error(boxes):
    """Infinite, NaN, inverted and far-away boxes read zeros or pixels, never memory outside the pyramid."""
    pooler = FusedPooler(STRIDES)
    pooled = pool(pooler, pyramid(images=1), torch.tensor([boxes]))
    assert torch.isfinite(pooled).all()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(*[st.floats(-500, 900, width=32)] * 4), min_size=1, max_size=6))
def test_ordered_boxes_equal_roi_pooler(corners):
    boxes = torch.tensor(corners).view(-1, 2, 2).sort(dim=1).values.flatten(1)[None]
    features = pyramid(images=1, channels=3)
    ours, theirs = (pool(p, features, boxes) for p in (FusedPooler(STRIDES), DetectronPooler(STRIDES)))
    assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_no_boxes():
    features = pyramid()
    pooler = FusedPooler(STRIDES)
    assert pool(pooler, features, torch.zeros(2, 0, 4)).shape == (0, 49, 8)


BROKEN = [[0, 0, torch.inf, 4], [-torch.inf, 0, torch.inf, 9], [torch.nan] * 4, [-3e38, 0, 3e38, 5]]


@pytest.mark.parametrize("box", BROKEN)
@pytest.mark.parametrize("mode", ROUTINGS)
def test_roi_pooler_refuses_boxes_that_are_no_numbers(box, mode):
    """torchvision's RoIAlign ends in a segmentation fault on them."""
    routing = ROUTINGS[mode](DetectronPooler(STRIDES), channels=8)
    boxes = torch.tensor([[[0.0, 0.0, 30.0, 40.0], box]])
    with pytest.raises(FloatingPointError, match="^1 of 2 boxes are infinite or NaN") as caught:
        routing(routing.pooler.prepare(pyramid(images=1)), boxes)
    assert "\n" not in str(caught.value)


class Routed(torch.nn.Module):
    """A routing with the fused pooler as a function of tensors."""

    def __init__(self, mode):
        super().__init__()
        self.routing = ROUTINGS[mode](FusedPooler(STRIDES), channels=8)

    def forward(self, p2, p3, p4, p5, boxes):
        return self.routing(self.routing.pooler.prepare([p2, p3, p4, p5]), boxes)


def trace(module, inputs):
    return torch.jit.trace(module, inputs)


def compile_fullgraph(module, inputs):
    torch.compiler.reset()
    return torch.compile(module, fullgraph=True, backend="eager")


def export(module, inputs):
    height, width = (torch.export.Dim(name, min=2, max=64) for name in ("height", "width"))
    shapes = [{2: scale * height, 3: scale * width} for scale in (8, 4, 2)] + [{2: height, 3: width}]
    shapes.append({1: torch.export.Dim("boxes", min=2, max=900)})
    return torch.export.export(module, inputs, dynamic_shapes=tuple(shapes)).module()


@pytest.mark.parametrize("mode", ROUTINGS)
@pytest.mark.parametrize("record", [trace, compile_fullgraph, export])
@pytest.mark.filterwarnings("ignore:.*Tracer")
def test_what_is_recorded_at_one_size_is_right_at_another(mode, record):
    module = Routed(mode).eval()
    with torch.no_grad():
        recorded = record(module, (*pyramid(images=1, size=(32, 48)), random_boxes(1, 6)))
        for size, number in (((64, 96), 9), ((40, 24), 3)):
            inputs = (*pyramid(images=1, size=size), random_boxes(1, number))
            assert_close(recorded(*inputs), module(*inputs))
