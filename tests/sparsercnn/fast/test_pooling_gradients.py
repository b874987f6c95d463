"""Gradients of pooling that all stages add to one buffer equal those of the plain pooler."""

import pytest
import torch
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from sparsercnn.fast.pooling_gradients import SharedGradientPooler, SharedGradientPyramid, _Buffer
from sparsercnn.modeling.pooler import FusedPooler
from sparsercnn.modeling.roi_routing import LevelRouting

from ..modeling.test_pooler import STRIDES, pyramid, random_boxes


def stages(kind, maps, used, through=lambda function, *inputs: function(*inputs)):
    """Sums of squares of what some of six stages pool from one pyramid, their boxes differing."""
    routing = LevelRouting(kind(STRIDES), channels=8)
    prepared = routing.pooler.prepare(maps)
    pooled = [through(routing, prepared, random_boxes(2, 10).roll(i, 1) * (1 + 0.1 * i)) for i in range(6)]
    return sum(pooled[i].transpose(1, 2).square().sum() * (i + 1) for i in used)


def gradients(kind, used, dtype=torch.float32, through=lambda function, *inputs: function(*inputs)):
    maps = [m.to(dtype).requires_grad_() for m in pyramid()]
    return torch.autograd.grad(stages(kind, maps, used, through), maps)


@pytest.mark.parametrize("used", [range(6), [1, 2, 4], [0], [5]])
def test_gradients_equal_those_of_the_plain_pooler(used):
    for ours, expected in zip(*(gradients(k, used) for k in (SharedGradientPooler, FusedPooler)), strict=True):
        assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_in_double_precision_exactly():
    both = (gradients(k, range(6), torch.float64) for k in (SharedGradientPooler, FusedPooler))
    for ours, expected in zip(*both, strict=True):
        assert_close(ours, expected, rtol=1e-10, atol=1e-10)


def test_half_precision_adds_up_in_float32():
    ours = gradients(SharedGradientPooler, range(6), torch.bfloat16)
    exact = [m.bfloat16().float().requires_grad_() for m in pyramid()]
    expected = torch.autograd.grad(stages(FusedPooler, exact, range(6)), exact)
    for gradient, reference in zip(ours, expected, strict=True):
        assert gradient.dtype == torch.bfloat16
        assert_close(gradient.float(), reference, rtol=1e-2, atol=1e-2)


def test_with_gradient_checkpointing():
    def through(routing, prepared, boxes):
        return checkpoint(routing, prepared, boxes, use_reentrant=False)

    ours = gradients(SharedGradientPooler, range(6), through=through)
    for gradient, expected in zip(ours, gradients(FusedPooler, range(6)), strict=True):
        assert_close(gradient, expected, rtol=1e-4, atol=1e-4)


def test_a_second_backward_starts_from_zero():
    maps = [m.requires_grad_() for m in pyramid()]
    loss = stages(SharedGradientPooler, maps, range(6))
    first = torch.autograd.grad(loss, maps, retain_graph=True)
    for again, expected in zip(torch.autograd.grad(loss, maps), first, strict=True):
        assert torch.equal(again, expected)


def test_gradients_from_elsewhere_are_added():
    maps = [m.requires_grad_() for m in pyramid()]
    prepared = SharedGradientPyramid(maps)
    index, weight = torch.tensor([[0, 1], [1, 2]]), torch.rand(2, 2)
    (prepared.sum_pixels(index, weight).sum() + prepared.pixels.sum()).backward()
    expected = torch.ones(len(prepared.pixels), 8)
    expected.index_add_(0, index.flatten(), weight.flatten()[:, None].expand(-1, 8))
    rows = maps[0].grad.permute(0, 2, 3, 1).flatten(0, 2)
    assert_close(rows, expected[: len(rows)])


def test_without_gradients_nothing_is_collected():
    with torch.no_grad():
        maps = [m.requires_grad_() for m in pyramid()]
        prepared = SharedGradientPyramid(maps)
        assert not prepared.sum_pixels(torch.zeros(1, 4, dtype=torch.long), torch.ones(1, 4)).requires_grad
    assert _Buffer().take() is None
