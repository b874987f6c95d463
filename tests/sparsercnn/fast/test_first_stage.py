"""The first stage remembers what all images share, and notices when that changes."""

from unittest import mock

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from sparsercnn import DynamicHead
from sparsercnn.fast.first_stage import Remembered, remember_first_stage

from ..models import small_model


def heads() -> tuple[DynamicHead, DynamicHead, tuple]:
    """A head that remembers, the same without, and an input of two images."""
    ours, plain = (small_model().requires_grad_(False).head for _ in range(2))
    remember_first_stage(ours)
    torch.manual_seed(0)
    features = [torch.randn(2, 32, size, size) for size in (16, 8, 4, 2)]
    boxes = torch.rand(2, 10, 4) * 20
    boxes[..., 2:] += boxes[..., :2] + 5
    return ours, plain, (features, boxes, torch.randn(10, 32))


def assert_same(ours: DynamicHead, plain: DynamicHead, inputs: tuple) -> None:
    for found, expected in zip(ours(*inputs), plain(*inputs), strict=True):
        assert_close(found, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_attends_once():
    ours, plain, inputs = heads()
    attention = ours.head_series[0].self_attn
    with mock.patch.object(attention, "forward", wraps=attention.forward) as attend:
        for _ in range(3):
            assert_same(ours, plain, inputs)
        features, boxes, objects = inputs
        assert_same(ours, plain, ([f[:1] for f in features], boxes[:1], objects))
    assert attend.call_count == 1


def scale_attention(head: DynamicHead) -> None:
    head.head_series[0].self_attn.in_proj_weight.mul_(1.5)


def scale_norm(head: DynamicHead) -> None:
    head.head_series[0].norm1.weight.mul_(1.5)


def scale_dynamic_layer(head: DynamicHead) -> None:
    layer = head.head_series[0].inst_interact.dynamic_layer
    (layer.layers[0] if isinstance(layer, Remembered) else layer).weight.mul_(1.5)


def replace_norm(head: DynamicHead) -> None:
    head.head_series[0].norm1.load_state_dict({"weight": torch.full((32,), 2.0), "bias": torch.ones(32)}, assign=True)


@pytest.mark.parametrize("change", [scale_attention, scale_norm, scale_dynamic_layer, replace_norm])
@torch.no_grad()
def test_notices_changed_weights(change):
    ours, plain, inputs = heads()
    before = ours(*inputs)[0]
    for head in (ours, plain):
        change(head)
    assert_same(ours, plain, inputs)
    assert not torch.allclose(ours(*inputs)[0], before)


@torch.no_grad()
def test_notices_changed_proposals():
    ours, plain, (features, boxes, objects) = heads()
    ours(features, boxes, objects)
    objects.mul_(2).add_(0.1)
    assert_same(ours, plain, (features, boxes, objects))
    assert_same(ours, plain, (features, boxes, objects + 1))


@torch.no_grad()
def test_images_with_objects_of_their_own_are_computed_each():
    layer = nn.Linear(3, 4)
    remembered, x = Remembered(layer.forward, [layer]), torch.randn(2, 5, 3)
    assert_close(remembered(x), layer(x))
    assert_close(remembered(x[:1].expand(2, -1, -1)), layer(x[:1]).expand(2, -1, -1))


def test_stages_that_share_weights_are_left_alone():
    head = small_model().head
    head.head_series[1] = head.head_series[0]
    remember_first_stage(head)
    assert not any(isinstance(module, Remembered) for module in head.modules())
