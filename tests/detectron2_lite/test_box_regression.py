"""Box deltas: round trips, clamping and numbers by hand."""

import math

import pytest
import torch
from detectron2.modeling.box_regression import Box2BoxTransform


def random_boxes(num: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner, size = (torch.rand(num, 2, generator=generator) * 100 for _ in range(2))
    return torch.cat([corner, corner + size + 1], dim=1)


def test_deltas_by_hand():
    transform = Box2BoxTransform(weights=(2, 2, 1, 1))
    src, target = torch.tensor([[0.0, 0, 10, 20]]), torch.tensor([[5.0, 5, 25, 15]])
    deltas = transform.get_deltas(src, target)
    # Centers (5, 10) and (15, 10), sizes (10, 20) and (20, 10)
    torch.testing.assert_close(deltas, torch.tensor([[2.0, 0, math.log(2), -math.log(2)]]))


@pytest.mark.parametrize("weights", [(1, 1, 1, 1), (10, 10, 5, 5)])
def test_deltas_lead_from_source_to_target(weights):
    transform = Box2BoxTransform(weights=weights)
    src, target = random_boxes(20, 0), random_boxes(20, 1)
    torch.testing.assert_close(transform.apply_deltas(transform.get_deltas(src, target), src), target)


def test_sizes_are_clamped_from_above():
    transform = Box2BoxTransform(weights=(1, 1, 1, 1), scale_clamp=math.log(4))
    out = transform.apply_deltas(torch.tensor([[0.0, 0, 100, math.log(2)]]), torch.tensor([[0.0, 0, 10, 10]]))
    torch.testing.assert_close(out, torch.tensor([[-15.0, -5, 25, 15]]))
    default = Box2BoxTransform(weights=(1, 1, 1, 1))
    assert default.scale_clamp == pytest.approx(math.log(1000 / 16))


def test_several_sets_of_deltas_per_box_and_half_precision():
    transform = Box2BoxTransform(weights=(1, 1, 1, 1))
    boxes = random_boxes(3, 0)
    deltas = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    out = transform.apply_deltas(deltas, boxes)
    torch.testing.assert_close(out[:, 4:], transform.apply_deltas(deltas[:, 4:], boxes))
    assert transform.apply_deltas(deltas.half(), boxes.half()).dtype == torch.float32
    assert transform.apply_deltas(deltas[:0], boxes[:0]).shape == (0, 8)


def test_source_without_width_is_refused():
    with pytest.raises(AssertionError, match="not valid"):
        Box2BoxTransform(weights=(1, 1, 1, 1)).get_deltas(torch.tensor([[5.0, 0, 5, 10]]), random_boxes(1, 0))


def test_gradient_of_the_size_stops_at_the_clamp():
    transform = Box2BoxTransform(weights=(1, 1, 1, 1))
    deltas = torch.tensor([[0.0, 0, 50, 0.5]], requires_grad=True)
    transform.apply_deltas(deltas, torch.tensor([[0.0, 0, 10, 10]]))[:, 2:].sum().backward()
    assert deltas.grad[0, 2] == 0 and deltas.grad[0, 3] > 0
