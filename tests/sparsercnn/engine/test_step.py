"""Accumulation and mixed precision, on a small model whose loss is normalized as the set loss is."""

import copy

import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from sparsercnn.engine import TrainStep
from sparsercnn.engine.not_finite import NotFiniteError


class Detector(nn.Module):
    """Squared errors of every box, divided by the number of boxes (at least 1)."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 4)

    def forward(self, batch):
        errors, count = [], sum(len(x["instances"]) for x in batch)
        for x in batch:
            boxes = x["instances"].gt_boxes.tensor
            output = self.layer(x["image"])
            errors.append((output - boxes).abs().sum() if len(boxes) else output.sum())
        total = 0.01 * sum(errors) / max(count, 1)
        return {"loss_bbox": total, "loss_giou": 0.5 * total}


def image(num_boxes, seed):
    generator = torch.Generator().manual_seed(seed)
    boxes = Boxes(torch.rand(num_boxes, 4, generator=generator) * 10)
    return {"image": torch.randn(3, generator=generator), "instances": Instances((8, 8), gt_boxes=boxes)}


IMAGES = [image(n, seed) for seed, n in enumerate((2, 0, 0, 5, 1, 0))]


def run(batches, accumulate=1, precision=None, steps=1, lr=10.0):
    """(model, storage) after `steps` iterations over `batches`."""
    model = Detector()
    optimizer = torch.optim.SGD(model.parameters(), lr)
    step = TrainStep(model, batches, optimizer, accumulate=accumulate, precision=precision)
    with EventStorage() as storage:
        for step.iter in range(steps):
            step.run_step()
    return model, storage


def test_accumulated_batches_equal_one_large_batch():
    halves, whole = [IMAGES[:3], IMAGES[3:]], [IMAGES]
    accumulated, storage = run(halves, accumulate=2)
    expected, expected_storage = run(whole)
    torch.testing.assert_close(accumulated.state_dict(), expected.state_dict())
    for name in ("total_loss", "loss_bbox", "loss_giou"):
        assert storage.history(name).latest() == pytest.approx(expected_storage.history(name).latest(), rel=1e-5)


def test_accumulation_without_any_box():
    empty = [IMAGES[1], IMAGES[2]]
    torch.testing.assert_close(run([empty[:1], empty[1:]], accumulate=2)[0].state_dict(), run([empty])[0].state_dict())


def test_an_iteration_takes_as_many_batches_as_it_accumulates():
    batches = iter([[x] for x in IMAGES])
    run(batches, accumulate=2, steps=2)
    assert len(list(batches)) == len(IMAGES) - 4


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_lower_precision_runs_the_model_in_it_and_keeps_true_gradients(precision):
    seen = []
    batches = [IMAGES[3:5]]
    hook = nn.modules.module.register_module_forward_hook(
        lambda module, _, output: seen.append(output.dtype) if isinstance(module, nn.Linear) else None
    )
    try:
        model, _ = run(batches, precision=precision)
    finally:
        hook.remove()
    expected, _ = run(batches)
    assert set(seen[: len(seen) // 2]) == {precision}
    assert model.layer.weight.dtype == torch.float32
    torch.testing.assert_close(model.state_dict(), expected.state_dict(), rtol=0.02, atol=0.005)


def test_gradients_that_overflow_in_float16_skip_the_step():
    large = copy.copy(IMAGES[3])
    large["image"] = torch.tensor([1000.0, 0.0, 0.0])  # times the scale of the loss more than float16 holds
    model = Detector()
    before = copy.deepcopy(model.state_dict())
    step = TrainStep(model, [[large]], torch.optim.AdamW(model.parameters(), 0.1, fused=True), precision=torch.float16)
    scale = step.grad_scaler.get_scale()
    with EventStorage():
        step.run_step()
    assert step.grad_scaler.get_scale() == scale / 2
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_float16_gives_up_when_no_scale_of_the_loss_helps():
    model = Detector()
    step = TrainStep(
        model, [[IMAGES[3]]] * 100, torch.optim.AdamW(model.parameters(), 0.1, fused=True), precision=torch.float16
    )
    model.layer.weight.register_hook(lambda gradient: torch.full_like(gradient, float("nan")))
    with EventStorage(), pytest.raises(NotFiniteError, match="gradient in float16, however"):
        for step.iter in range(100):
            step.run_step()
    assert step.iter < 40


def test_optimizer_state_follows_the_memory_layout_of_the_parameters():
    def make(layout):
        torch.manual_seed(0)
        model = nn.Conv2d(3, 4, 3).to(memory_format=layout)
        return model, TrainStep(model, [], torch.optim.AdamW(model.parameters(), 0.1, fused=True))

    def update(model, step, seed):
        generator = torch.Generator().manual_seed(seed)
        for p in model.parameters():
            p.grad = torch.empty_like(p).copy_(torch.randn(p.shape, generator=generator))
        step.optimizer.step()

    model, step = make(torch.contiguous_format)
    update(model, step, 1)
    other, resumed = make(torch.channels_last)
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(copy.deepcopy(step.state_dict()))
    update(model, step, 2)
    update(other, resumed, 2)
    torch.testing.assert_close(other.weight, model.weight)
