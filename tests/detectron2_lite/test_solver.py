"""Parameter groups, clipping and learning-rate schedules."""

import math

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.solver import (
    LRMultiplier,
    WarmupCosineLR,
    WarmupMultiStepLR,
    WarmupParamScheduler,
    build_lr_scheduler,
    build_optimizer,
    get_default_optimizer_params,
)
from detectron2.solver.build import maybe_add_gradient_clipping
from fvcore.common.param_scheduler import CosineParamScheduler, MultiStepParamScheduler
from torch import nn


@pytest.fixture
def model():
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


def by_parameter(groups, model):
    """Hyperparameters of every parameter by its name."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        names[p]: {key: value for key, value in group.items() if key != "params"}
        for group in groups
        for p in group["params"]
    }


def schedule(scheduler, optimizer, steps):
    """Learning rates of `steps` iterations, each but the last followed by a step of the scheduler."""
    lrs = [optimizer.param_groups[0]["lr"]]
    for _ in range(steps - 1):
        optimizer.step()
        scheduler.step()
        lrs.append(optimizer.param_groups[0]["lr"])
    return lrs


def sgd(lr=1.0):
    parameter = nn.Parameter(torch.zeros(1))
    return torch.optim.SGD([parameter], lr=lr)


def test_equal_hyperparameters_share_a_group(model):
    groups = get_default_optimizer_params(model, base_lr=1.0)
    assert len(groups) == 1 and groups[0]["lr"] == 1.0
    assert [id(p) for p in groups[0]["params"]] == [id(p) for p in model.parameters()]


def test_hyperparameters_by_kind_of_parameter(model):
    groups = get_default_optimizer_params(
        model, base_lr=1.0, weight_decay=0.1, weight_decay_norm=0.0, bias_lr_factor=2.0, weight_decay_bias=0.5
    )
    of = by_parameter(groups, model)
    assert of["0.weight"] == of["2.weight"] == {"lr": 1.0, "weight_decay": 0.1}
    assert of["1.weight"] == {"lr": 1.0, "weight_decay": 0.0}
    assert of["0.bias"] == of["1.bias"] == {"lr": 2.0, "weight_decay": 0.5}
    assert len(groups) == 3


def test_learning_rate_by_name_and_overrides(model):
    groups = get_default_optimizer_params(
        model,
        base_lr=1.0,
        lr_factor_func=lambda name: 0.1 if name.startswith("0.") else 1.0,
        overrides={"bias": {"lr": 9.0, "weight_decay": 0.0}},
    )
    of = by_parameter(groups, model)
    assert (of["0.weight"], of["2.weight"]) == ({"lr": 0.1}, {"lr": 1.0})
    assert of["0.bias"] == {"lr": 9.0, "weight_decay": 0.0}


def test_frozen_and_shared_parameters(model):
    model[2].weight.requires_grad = False
    model.append(model[0])
    groups = get_default_optimizer_params(model)
    assert set(by_parameter(groups, model)) == {"0.weight", "0.bias", "1.weight", "1.bias", "2.bias"}
    assert sum(len(group["params"]) for group in groups) == 5


@pytest.mark.parametrize(
    "arguments",
    [{"bias_lr_factor": 2.0}, {"base_lr": 1.0, "weight_decay_bias": 0.1, "overrides": {"bias": {"lr": 1.0}}}],
)
def test_contradicting_arguments(model, arguments):
    with pytest.raises(ValueError):
        get_default_optimizer_params(model, **arguments)


def test_build_optimizer_reads_the_config(model):
    cfg = get_cfg()
    cfg.SOLVER.BASE_LR = 0.5
    cfg.SOLVER.WEIGHT_DECAY_NORM = 0.25
    optimizer = build_optimizer(cfg, model)
    assert isinstance(optimizer, torch.optim.SGD)
    of = by_parameter(optimizer.param_groups, model)
    assert (of["0.weight"]["lr"], of["0.weight"]["momentum"], of["0.weight"]["weight_decay"]) == (0.5, 0.9, 1e-4)
    assert of["1.weight"]["weight_decay"] == 0.25


@pytest.mark.parametrize("as_class", [False, True])
@pytest.mark.parametrize("clip_type, expected", [("value", [-1.0, -1.0]), ("norm", [-0.6, -0.8])])
def test_clipping_each_parameter(as_class, clip_type, expected):
    cfg = get_cfg()
    cfg.SOLVER.CLIP_GRADIENTS.merge_from_list(["ENABLED", True, "CLIP_TYPE", clip_type, "CLIP_VALUE", 1.0])
    parameter = nn.Parameter(torch.zeros(2))
    other = nn.Parameter(torch.zeros(1))
    parameters = [{"params": [parameter]}, {"params": [other]}]
    if as_class:
        optimizer = maybe_add_gradient_clipping(cfg, torch.optim.SGD)(parameters, lr=1.0)
    else:
        optimizer = maybe_add_gradient_clipping(cfg, torch.optim.SGD(parameters, lr=1.0))
    assert isinstance(optimizer, torch.optim.SGD)
    parameter.grad = torch.tensor([30.0, 40.0])
    other.grad = torch.tensor([0.5])  # clipped by itself: stays
    optimizer.step()
    torch.testing.assert_close(parameter.data, torch.tensor(expected))
    torch.testing.assert_close(other.data, torch.tensor([-0.5]))


def test_no_clipping_unless_enabled():
    optimizer = sgd()
    assert type(maybe_add_gradient_clipping(get_cfg(), optimizer)) is torch.optim.SGD


def test_multistep_with_linear_warmup():
    optimizer = sgd(5.0)
    multistep = MultiStepParamScheduler([1, 0.1, 0.01, 0.001], milestones=[10, 15, 20], num_updates=30)
    scheduler = LRMultiplier(optimizer, WarmupParamScheduler(multistep, 0.001, 5 / 30), 30)
    lrs = schedule(scheduler, optimizer, 30)
    assert lrs[:5] == pytest.approx([0.005, 1.004, 2.003, 3.002, 4.001])
    assert lrs[5:] == pytest.approx([5.0] * 5 + [0.5] * 5 + [0.05] * 5 + [0.005] * 10)


def test_cosine_with_constant_warmup_and_with_a_rescaled_interval():
    optimizer = sgd()
    cosine = CosineParamScheduler(1, 0)
    lrs = schedule(LRMultiplier(optimizer, WarmupParamScheduler(cosine, 0.5, 0.2, "constant"), 10), optimizer, 10)
    assert lrs == pytest.approx([0.5] * 2 + [0.5 + 0.5 * math.cos(math.pi * k / 10) for k in range(2, 10)], abs=1e-3)
    optimizer = sgd()
    rescaled = WarmupParamScheduler(cosine, 0.0, 0.2, rescale_interval=True)
    lrs = schedule(LRMultiplier(optimizer, rescaled, 10), optimizer, 10)
    assert lrs[1] == pytest.approx(0.5)
    assert lrs[3:] == pytest.approx([0.5 + 0.5 * math.cos(math.pi * k / 8) for k in range(1, 8)])


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="quadratic"):
        WarmupParamScheduler(CosineParamScheduler(1, 0), 0.1, 0.1, "quadratic")
    with pytest.raises(ValueError):
        LRMultiplier(sgd(), multiplier=lambda where: 1.0, max_iter=10)
    cfg = get_cfg()
    cfg.SOLVER.LR_SCHEDULER_NAME = "Nothing"
    with pytest.raises(ValueError, match="Nothing"):
        build_lr_scheduler(cfg, sgd())


@pytest.mark.parametrize(
    "name, options, expected",
    [
        ("WarmupMultiStepLR", ["STEPS", (50, 75, 500)], {0: 1.0, 49: 1.0, 50: 0.1, 75: 0.01, 99: 0.01}),
        ("WarmupCosineLR", ["BASE_LR_END", 0.5], {0: 1.0, 50: 0.75, 99: 0.5}),
        ("WarmupStepWithFixedGammaLR", ["NUM_DECAYS", 1, "GAMMA", 0.2], {0: 1.0, 49: 1.0, 50: 0.2, 99: 0.2}),
    ],
)
def test_schedules_of_the_config(name, options, expected):
    cfg = get_cfg()
    cfg.SOLVER.merge_from_list(
        ["LR_SCHEDULER_NAME", name, "MAX_ITER", 100, "BASE_LR", 1.0, "WARMUP_ITERS", 0, *options]
    )
    optimizer = sgd(cfg.SOLVER.BASE_LR)
    lrs = schedule(build_lr_scheduler(cfg, optimizer), optimizer, 100)
    assert {k: lrs[k] for k in expected} == pytest.approx(expected, abs=1e-3)


def test_schedule_resumes():
    first, second = sgd(), sgd()
    whole = LRMultiplier(first, CosineParamScheduler(1, 0), 20)
    lrs = schedule(whole, first, 20)
    half = LRMultiplier(second, CosineParamScheduler(1, 0), 20)
    schedule(half, second, 9)
    third = sgd()
    resumed = LRMultiplier(third, CosineParamScheduler(1, 0), 20)
    third.load_state_dict(second.state_dict())
    resumed.load_state_dict(half.state_dict())
    assert schedule(resumed, third, 12) == pytest.approx(lrs[8:])


def test_schedules_in_iterations():
    optimizer = sgd(5.0)
    lrs = schedule(WarmupMultiStepLR(optimizer, [10, 15], warmup_factor=0.001, warmup_iters=5), optimizer, 20)
    assert lrs == pytest.approx([0.005, 1.004, 2.003, 3.002, 4.001] + [5.0] * 5 + [0.5] * 5 + [0.05] * 5)
    optimizer = sgd()
    lrs = schedule(WarmupCosineLR(optimizer, 10, warmup_factor=0.5, warmup_iters=1), optimizer, 10)
    assert lrs == pytest.approx([0.5] + [0.5 + 0.5 * math.cos(math.pi * k / 10) for k in range(1, 10)])
    with pytest.raises(ValueError):
        WarmupMultiStepLR(sgd(), [15, 10])
