import copy

import pytest
import torch
from torch import nn

from sparsercnn import load_config
from sparsercnn.engine import build_lr_scheduler, build_optimizer
from sparsercnn.errors import InputError


@pytest.fixture
def cfg():
    cfg = load_config()
    cfg.SOLVER.BASE_LR = 0.1
    cfg.SOLVER.WEIGHT_DECAY = 0.01
    return cfg


@pytest.fixture
def model():
    torch.manual_seed(0)
    layers = {"backbone": nn.Conv2d(3, 4, 3), "norm": nn.BatchNorm2d(4), "head": nn.Linear(4, 2)}
    return nn.ModuleDict(layers)


def test_parameters_with_the_same_learning_rate_share_one_group(cfg, model):
    assert len(build_optimizer(cfg, model).param_groups) == 1
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.5
    groups = {group["lr"]: group for group in build_optimizer(cfg, model).param_groups}
    assert set(groups) == {0.05, 0.1}
    assert {id(p) for p in groups[0.05]["params"]} == {id(p) for p in model["backbone"].parameters()}


def test_weight_decay_reaches_every_parameter_and_frozen_ones_are_left_out(cfg, model):
    model["norm"].weight.requires_grad_(False)
    groups = build_optimizer(cfg, model).param_groups
    assert all(group["weight_decay"] == 0.01 for group in groups)
    trained = {id(p) for group in groups for p in group["params"]}
    assert trained == {id(p) for p in model.parameters() if p is not model["norm"].weight}


@pytest.mark.parametrize("name", ["ADAMW", "SGD"])
def test_updates_equal_those_of_plain_per_parameter_groups(cfg, model, name):
    cfg.SOLVER.OPTIMIZER = name
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.5
    initial = [p.detach().clone() for p in model.parameters()]
    reference = [nn.Parameter(p.clone()) for p in initial]
    rates = [0.05 if "backbone" in n else 0.1 for n, _ in model.named_parameters()]
    groups = [{"params": [p], "lr": lr} for p, lr in zip(reference, rates, strict=True)]
    kwargs = {"momentum": cfg.SOLVER.MOMENTUM} if name == "SGD" else {}
    plain = {"ADAMW": torch.optim.AdamW, "SGD": torch.optim.SGD}[name](groups, weight_decay=0.01, **kwargs)
    optimizer = build_optimizer(cfg, model)
    for _ in range(3):
        for p, q in zip(model.parameters(), reference, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        optimizer.step()
        plain.step()
    for p, q, start in zip(model.parameters(), reference, initial, strict=True):
        assert not torch.equal(p, start)
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize("name", ["ADAMW", "SGD"])
def test_an_overflow_in_the_first_step_leaves_nothing_behind(cfg, model, name):
    cfg.SOLVER.OPTIMIZER = name
    untouched = copy.deepcopy(model)
    optimizer, plain = build_optimizer(cfg, model), build_optimizer(cfg, untouched)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.zeros(1))
    for gradient in (float("inf"), 1.0):
        for p in model.parameters():
            p.grad = torch.full_like(p, gradient * scaler.get_scale())
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    for p in untouched.parameters():
        p.grad = torch.ones_like(p)
    plain.step()
    torch.testing.assert_close(model.state_dict(), untouched.state_dict())


def test_full_model_clipping_scales_all_gradients_together(cfg, model):
    cfg.SOLVER.CLIP_GRADIENTS.merge_from_list(["ENABLED", True, "CLIP_TYPE", "full_model", "CLIP_VALUE", 1.0])
    optimizer = build_optimizer(cfg, model)
    gradients = [torch.randn_like(p) for p in model.parameters()]
    for p, g in zip(model.parameters(), gradients, strict=True):
        p.grad = g.clone()
    norm = torch.cat([g.flatten() for g in gradients]).norm()
    assert norm > 1
    optimizer.step()
    for p, g in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(p.grad, g / norm, rtol=1e-4, atol=1e-6)


def test_value_clipping_is_detectron2s(cfg, model):
    cfg.SOLVER.CLIP_GRADIENTS.merge_from_list(["ENABLED", True, "CLIP_TYPE", "value", "CLIP_VALUE", 0.25])
    optimizer = build_optimizer(cfg, model)
    for p in model.parameters():
        p.grad = torch.full_like(p, 3.0)
    optimizer.step()
    assert all((p.grad == 0.25).all() for p in model.parameters())


def test_unknown_optimizer_is_an_input_error(cfg, model):
    cfg.SOLVER.OPTIMIZER = "LION"
    with pytest.raises(InputError, match="SOLVER.OPTIMIZER.*LION.*ADAMW, SGD"):
        build_optimizer(cfg, model)


def one_cycle_rates(cfg, model):
    optimizer = build_optimizer(cfg, model)
    scheduler = build_lr_scheduler(cfg, optimizer)
    rates = []
    for _ in range(cfg.SOLVER.MAX_ITER):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_one_cycle_rises_to_the_base_rate_and_falls_to_the_end_rate(cfg, model):
    cfg.SOLVER.merge_from_list(["LR_SCHEDULER_NAME", "OneCycle", "MAX_ITER", 200, "WARMUP_ITERS", 50])
    cfg.SOLVER.merge_from_list(["WARMUP_FACTOR", 0.1, "BASE_LR_END", 0.001])
    rates = one_cycle_rates(cfg, model)
    assert rates[0] == pytest.approx(0.01)
    assert rates[50] == max(rates) == pytest.approx(0.1)
    assert rates[25] == pytest.approx(0.055)
    assert rates[-1] == pytest.approx(0.001, abs=1e-4)
    assert sorted(rates[:51]) == rates[:51] and sorted(rates[50:], reverse=True) == rates[50:]


def test_detectron2_schedules_stay_available(cfg, model):
    cfg.SOLVER.merge_from_list(["LR_SCHEDULER_NAME", "WarmupMultiStepLR", "MAX_ITER", 20, "WARMUP_ITERS", 2])
    cfg.SOLVER.STEPS = (10,)
    rates = one_cycle_rates(cfg, model)
    assert rates[5] == pytest.approx(0.1) and rates[15] == pytest.approx(0.01)


@pytest.mark.parametrize(
    "options", [["LR_SCHEDULER_NAME", "Warmup"], ["LR_SCHEDULER_NAME", "OneCycle", "MAX_ITER", 10]]
)
def test_impossible_schedules_are_input_errors(cfg, model, options):
    cfg.SOLVER.merge_from_list(options)
    with pytest.raises(InputError, match=r"SOLVER\.(LR_SCHEDULER_NAME|WARMUP_ITERS)"):
        build_lr_scheduler(cfg, build_optimizer(cfg, model))


def test_faster_rcnn_learns_as_detectron2_says(model):
    cfg = load_config(options=["MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "SOLVER.BIAS_LR_FACTOR", 2.0])
    optimizer = build_optimizer(cfg, model)
    assert type(optimizer) is torch.optim.SGD
    options = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    rate, decay = cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY
    assert options[id(model["norm"].weight)] == (rate, 0.0)  # SOLVER.WEIGHT_DECAY_NORM
    assert options[id(model["head"].weight)] == (rate, decay)
    assert options[id(model["head"].bias)] == (2 * rate, decay)


def test_the_rate_is_scaled_to_the_images_of_a_step(cfg, model):
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.ACCUMULATE, cfg.SOLVER.BACKBONE_MULTIPLIER = 4, 2, 0.5
    cfg.SOLVER.REFERENCE_BATCH = 16
    assert {group["lr"] for group in build_optimizer(cfg, model).param_groups} == {0.05, 0.025}
    cfg.SOLVER.LR_SCHEDULER_NAME, cfg.SOLVER.BASE_LR_END = "OneCycle", 0.01
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.WARMUP_FACTOR = 10, 5, 0.1
    optimizer = build_optimizer(cfg, model)
    build_lr_scheduler(cfg, optimizer)
    assert optimizer.param_groups[0]["lr"] in (pytest.approx(0.005), pytest.approx(0.0025))
