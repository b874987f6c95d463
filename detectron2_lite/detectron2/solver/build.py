"""Optimizer, gradient clipping and learning-rate schedule from a config."""

import copy
import itertools
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any

import torch
from fvcore.common.param_scheduler import (
    CosineParamScheduler,
    MultiStepParamScheduler,
    ParamScheduler,
)
from torch import nn
from torch.optim import Optimizer

from detectron2.config import CfgNode

from .lr_scheduler import LRMultiplier, LRScheduler, WarmupParamScheduler

_GradientClipper = Callable[[Iterable[torch.Tensor] | torch.Tensor], Any]

_NORM_MODULES = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.GroupNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.LayerNorm,
    nn.LocalResponseNorm,
)


class GradientClipType(Enum):
    """Values of SOLVER.CLIP_GRADIENTS.CLIP_TYPE."""

    VALUE = "value"
    NORM = "norm"


def _create_gradient_clipper(cfg: CfgNode) -> _GradientClipper:
    """The function that clips the gradient of one parameter. `cfg` is SOLVER.CLIP_GRADIENTS."""
    cfg = copy.deepcopy(cfg)

    def clip_norm(p: torch.Tensor) -> None:
        nn.utils.clip_grad_norm_(p, cfg.CLIP_VALUE, cfg.NORM_TYPE)

    def clip_value(p: torch.Tensor) -> None:
        nn.utils.clip_grad_value_(p, cfg.CLIP_VALUE)

    return {GradientClipType.VALUE: clip_value, GradientClipType.NORM: clip_norm}[GradientClipType(cfg.CLIP_TYPE)]


def _generate_optimizer_class_with_gradient_clipping(
    optimizer: type[Optimizer],
    *,
    per_param_clipper: _GradientClipper | None = None,
    global_clipper: _GradientClipper | None = None,
) -> type[Optimizer]:
    """A subclass of an optimizer class that clips, each parameter by itself or all together, before it steps."""
    assert per_param_clipper is None or global_clipper is None, (
        "Not allowed to use both per-parameter clipping and global clipping"
    )

    def step(self, closure=None):
        parameters = itertools.chain(*(group["params"] for group in self.param_groups))
        if per_param_clipper is not None:
            for p in parameters:
                per_param_clipper(p)
        else:
            global_clipper(parameters)
        return optimizer.step(self, closure)

    return type(optimizer.__name__ + "WithGradientClip", (optimizer,), {"step": step})


def maybe_add_gradient_clipping(cfg: CfgNode, optimizer: Optimizer | type[Optimizer]) -> Optimizer | type[Optimizer]:
    """Make an optimizer, or an optimizer class, clip gradients if SOLVER.CLIP_GRADIENTS.ENABLED.

    Args:
        cfg: the whole config.
        optimizer: an instance, whose class is changed, or a class.

    Returns:
        The same instance, or a subclass of the class.
    """
    if not cfg.SOLVER.CLIP_GRADIENTS.ENABLED:
        return optimizer
    is_instance = isinstance(optimizer, Optimizer)
    optimizer_type = type(optimizer) if is_instance else optimizer
    assert issubclass(optimizer_type, Optimizer), optimizer_type
    clipping = _generate_optimizer_class_with_gradient_clipping(
        optimizer_type, per_param_clipper=_create_gradient_clipper(cfg.SOLVER.CLIP_GRADIENTS)
    )
    if not is_instance:
        return clipping
    optimizer.__class__ = clipping
    return optimizer


def build_optimizer(cfg: CfgNode, model: nn.Module) -> Optimizer:
    """SGD with momentum over the model's parameters as SOLVER says."""
    solver = cfg.SOLVER
    params = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
    )
    sgd = torch.optim.SGD(
        params,
        lr=solver.BASE_LR,
        momentum=solver.MOMENTUM,
        nesterov=solver.NESTEROV,
        weight_decay=solver.WEIGHT_DECAY,
        foreach=True,
    )
    return maybe_add_gradient_clipping(cfg, sgd)


def get_default_optimizer_params(
    model: nn.Module,
    base_lr: float | None = None,
    weight_decay: float | None = None,
    weight_decay_norm: float | None = None,
    bias_lr_factor: float | None = 1.0,
    weight_decay_bias: float | None = None,
    lr_factor_func: Callable[[str], float] | None = None,
    overrides: dict[str, dict[str, float]] | None = None,
) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer, one group per set of equal hyperparameters.

    Args:
        model: parameters that need no gradient are left out, shared ones appear once.
        base_lr: learning rate of every group. None leaves it to the optimizer.
        weight_decay: weight decay of every group. None leaves it to the optimizer.
        weight_decay_norm: weight decay of the parameters of normalization layers, if it differs.
        bias_lr_factor: factor of the learning rate of parameters named "bias". Needs `base_lr`.
        weight_decay_bias: weight decay of parameters named "bias", if it differs.
        lr_factor_func: from a parameter's full name to a factor of its learning rate. Needs `base_lr`.
        overrides: hyperparameters by the last part of a parameter's name, for example {"embedding": {"lr": 0.01}}.

    Raises:
        ValueError: a factor without `base_lr`, or "bias" in `overrides` besides the arguments for biases.
    """
    defaults = {}
    if base_lr is not None:
        defaults["lr"] = base_lr
    if weight_decay is not None:
        defaults["weight_decay"] = weight_decay
    overrides = _add_bias_overrides(overrides or {}, base_lr, bias_lr_factor, weight_decay_bias)
    if lr_factor_func is not None and base_lr is None:
        raise ValueError("lr_factor_func requires base_lr")

    groups = []
    seen: set[nn.Parameter] = set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            hyperparameters = copy.copy(defaults)
            if isinstance(module, _NORM_MODULES) and weight_decay_norm is not None:
                hyperparameters["weight_decay"] = weight_decay_norm
            if lr_factor_func is not None:
                hyperparameters["lr"] *= lr_factor_func(f"{module_name}.{name}")
            hyperparameters.update(overrides.get(name, {}))
            groups.append({"params": [parameter], **hyperparameters})
    return reduce_param_groups(groups)


def _add_bias_overrides(
    overrides: dict[str, dict[str, float]],
    base_lr: float | None,
    bias_lr_factor: float | None,
    weight_decay_bias: float | None,
) -> dict[str, dict[str, float]]:
    of_bias = {}
    if bias_lr_factor is not None and bias_lr_factor != 1.0:
        if base_lr is None:
            raise ValueError("bias_lr_factor requires base_lr")
        of_bias["lr"] = base_lr * bias_lr_factor
    if weight_decay_bias is not None:
        of_bias["weight_decay"] = weight_decay_bias
    if of_bias and "bias" in overrides:
        raise ValueError("Conflicting overrides for 'bias'")
    return {**overrides, "bias": of_bias} if of_bias else overrides


def _expand_param_groups(params: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One group per parameter; what a later group says of a parameter is added to what earlier ones said."""
    expanded: dict[nn.Parameter, dict[str, Any]] = defaultdict(dict)
    for group in params:
        assert "params" in group
        hyperparameters = {key: value for key, value in group.items() if key != "params"}
        for parameter in group["params"]:
            expanded[parameter].update({"params": [parameter], **hyperparameters})
    return list(expanded.values())


def reduce_param_groups(params: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Merge groups with the same hyperparameters: optimizers that work on whole groups are faster with few of them.

    The order of parameters is that of their first appearance.
    """
    merged: dict[tuple, list[nn.Parameter]] = defaultdict(list)
    for group in _expand_param_groups(params):
        merged[tuple((key, value) for key, value in group.items() if key != "params")].extend(group["params"])
    return [{**dict(hyperparameters), "params": parameters} for hyperparameters, parameters in merged.items()]


def build_lr_scheduler(cfg: CfgNode, optimizer: Optimizer) -> LRScheduler:
    """The schedule SOLVER.LR_SCHEDULER_NAME after SOLVER's warm-up, to be stepped every iteration.

    Raises:
        ValueError: an unknown name.
    """
    solver = cfg.SOLVER
    schedule = WarmupParamScheduler(
        _param_scheduler(solver),
        solver.WARMUP_FACTOR,
        min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0),
        solver.WARMUP_METHOD,
        solver.RESCALE_INTERVAL,
    )
    return LRMultiplier(optimizer, multiplier=schedule, max_iter=solver.MAX_ITER)


def _param_scheduler(solver: CfgNode) -> ParamScheduler:
    """The schedule without warm-up, as a factor of the learning rate."""
    name, max_iter = solver.LR_SCHEDULER_NAME, solver.MAX_ITER
    if name == "WarmupMultiStepLR":
        steps = [x for x in solver.STEPS if x <= max_iter]
        if len(steps) != len(solver.STEPS):
            logging.getLogger(__name__).warning(
                "SOLVER.STEPS contains values larger than SOLVER.MAX_ITER. These values will be ignored."
            )
        return _decay_at(steps, solver.GAMMA, max_iter)
    if name == "WarmupStepWithFixedGammaLR":
        pieces = solver.NUM_DECAYS + 1
        return _decay_at([math.ceil(k * max_iter / pieces) for k in range(1, pieces)], solver.GAMMA, max_iter)
    if name == "WarmupCosineLR":
        end_value = solver.BASE_LR_END / solver.BASE_LR
        assert 0.0 <= end_value <= 1.0, end_value
        return CosineParamScheduler(1, end_value)
    raise ValueError(f"Unknown LR scheduler: {name}")


def _decay_at(steps: list[int], gamma: float, max_iter: int) -> ParamScheduler:
    """1, then multiplied by gamma at every step."""
    values = [gamma**k for k in range(len(steps) + 1)]
    return MultiStepParamScheduler(values=values, milestones=steps, num_updates=max_iter)
