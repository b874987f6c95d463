"""Box deltas and their losses: round trips, clamping and numbers by hand."""

import math

import pytest
import torch
from detectron2.modeling.box_regression import Box2BoxTransform, _dense_box_regression_loss
from detectron2.structures import Boxes


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


# ---------------------------------------------------------------- losses

# Two images, two levels of one anchor each; one anchor of each image counts.
ANCHORS = [Boxes(torch.tensor([[0.0, 0, 10, 20]])), Boxes(torch.tensor([[20.0, 20, 40, 40]]))]
TARGETS = [torch.tensor([[5.0, 0, 15, 20]]).repeat(2, 1), torch.tensor([[20.0, 25, 40, 35]]).repeat(2, 1)]
MASK = torch.tensor([[True, False], [False, True]])


def loss(kind: str, beta: float = 0.0, deltas: torch.Tensor | None = None) -> float:
    deltas = torch.zeros(2, 2, 4) if deltas is None else deltas
    transform = Box2BoxTransform(weights=(2, 2, 1, 1))
    by_level = [deltas[:, :1], deltas[:, 1:]]
    return _dense_box_regression_loss(ANCHORS, transform, by_level, TARGETS, MASK, kind, beta).item()


def test_l1_and_smooth_l1_by_hand():
    """Deltas wanted: dx = 2 * 0.5 of the first anchor, dh = -ln 2 of the second."""
    ln2 = math.log(2)
    assert loss("smooth_l1") == pytest.approx(1 + ln2)
    assert loss("smooth_l1", beta=2.0) == pytest.approx(0.5 * (1 + ln2**2) / 2)
    assert loss("smooth_l1", beta=0.8) == pytest.approx(1 - 0.4 + 0.5 * ln2**2 / 0.8)


def test_losses_of_boxes_by_hand():
    """IoU is 1/3 with the first target, in its hull, and 1/2 with the second, in the anchor."""
    assert loss("giou") == pytest.approx(2 / 3 + 1 / 2, rel=1e-5)
    # Squared distance of centers over squared diagonal of the hull, 15 × 20.
    distance = 25 / (15**2 + 20**2)
    assert loss("diou") == pytest.approx(2 / 3 + distance + 1 / 2, rel=1e-5)
    v = 4 / math.pi**2 * (math.atan(20 / 10) - math.atan(20 / 20)) ** 2
    assert loss("ciou") == pytest.approx(2 / 3 + distance + 1 / 2 + v * v / (1 / 2 + v), rel=1e-5)


@pytest.mark.parametrize("kind", ["smooth_l1", "giou", "diou", "ciou"])
def test_what_does_not_count_changes_nothing_and_the_target_costs_nothing(kind):
    transform = Box2BoxTransform(weights=(2, 2, 1, 1))
    anchors = Boxes.cat(ANCHORS).tensor
    exact = torch.stack([transform.get_deltas(anchors, target) for target in TARGETS])
    assert loss(kind, deltas=exact) == pytest.approx(0, abs=1e-5)
    exact[~MASK] = 0.3
    assert loss(kind, deltas=exact) == pytest.approx(0, abs=1e-5)


def test_unknown_loss_is_refused():
    with pytest.raises(ValueError, match="Invalid dense box regression loss type 'l3'"):
        loss("l3")
