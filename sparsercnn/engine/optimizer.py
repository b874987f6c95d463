"""Optimizers: detectron2's parameter groups, a multiplier for the backbone, whole-model gradient clipping."""

import torch
from detectron2.config import CfgNode
from detectron2.solver import get_default_optimizer_params
from torch import nn
from torch.optim import Optimizer

from ..errors import check_choice
from .not_finite import GradientNotFiniteError, all_finite

OPTIMIZERS = ("ADAMW", "SGD")
CLIP_TYPES = ("full_model", "value", "norm")
"""What `SOLVER.CLIP_GRADIENTS.CLIP_TYPE` may say."""


def build_optimizer(cfg: CfgNode, model: nn.Module) -> Optimizer:
    """AdamW or SGD (`SOLVER.OPTIMIZER`) over the trainable parameters of `model`.

    Parameters with "backbone" in their name learn at `SOLVER.BASE_LR * SOLVER.BACKBONE_MULTIPLIER`; with
    `SOLVER.REFERENCE_BATCH` all rates are scaled to the images of a step. Weight decay of
    norms and biases and the learning rate of biases are as detectron2's keys say; `SOLVER.WEIGHT_DECAY_NORM` None, the
    default of Sparse R-CNN, is that of all parameters. Those with the same options share one group, so that few kernels
    update all of them at once.

    `SOLVER.CLIP_GRADIENTS` with `CLIP_TYPE: full_model` scales all gradients together to the norm `CLIP_VALUE`
    whenever the optimizer steps; the other types are detectron2's, which clip each parameter by itself. A gradient
    scaler must have unscaled the gradients before the step, as `TrainStep` does.

    The optimizer's `step` raises `GradientNotFiniteError`, before it changes a parameter, if a gradient is infinite or
    not a number.

    Raises:
        InputError: `SOLVER.OPTIMIZER` or the type of clipping is unknown.
    """
    solver = cfg.SOLVER
    check_choice("SOLVER.OPTIMIZER", solver.OPTIMIZER, OPTIMIZERS)
    if solver.CLIP_GRADIENTS.ENABLED:
        check_choice("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", solver.CLIP_GRADIENTS.CLIP_TYPE, CLIP_TYPES)
    base_lr = solver.BASE_LR
    if solver.REFERENCE_BATCH:
        base_lr *= solver.IMS_PER_BATCH * solver.ACCUMULATE / solver.REFERENCE_BATCH
    groups = get_default_optimizer_params(
        model,
        base_lr=base_lr,
        weight_decay=solver.WEIGHT_DECAY,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        lr_factor_func=lambda name: solver.BACKBONE_MULTIPLIER if "backbone" in name else 1.0,
    )
    if solver.OPTIMIZER == "ADAMW":
        optimizer: Optimizer = torch.optim.AdamW(groups, base_lr, weight_decay=solver.WEIGHT_DECAY, fused=True)
    else:
        # Not fused: if the very first step is skipped because float16 overflowed, PyTorch's fused kernels go on with
        # momenta that were never written.
        optimizer = torch.optim.SGD(
            groups,
            base_lr,
            momentum=solver.MOMENTUM,
            nesterov=solver.NESTEROV,
            weight_decay=solver.WEIGHT_DECAY,
            foreach=True,
        )
    _check_and_clip_before_step(optimizer, solver.CLIP_GRADIENTS)
    return optimizer


def _check_and_clip_before_step(optimizer: Optimizer, clip: CfgNode) -> None:
    kind = clip.CLIP_TYPE if clip.ENABLED else None

    def before_step(optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if kind == "full_model":
            # The norm that clipping needs tells whether all gradients are finite: no time of its own.
            finite = bool(nn.utils.clip_grad_norm_(parameters, clip.CLIP_VALUE, clip.NORM_TYPE).isfinite())
        else:
            finite = all_finite(p.grad for p in parameters)
        # A gradient scaler tells fused optimizers by this attribute to do nothing where float16 overflowed.
        if not finite and getattr(optimizer, "found_inf", None) is None:
            raise GradientNotFiniteError("a gradient is not finite")
        if kind == "value":
            nn.utils.clip_grad_value_(parameters, clip.CLIP_VALUE)
        if kind == "norm":
            for parameter in parameters:
                nn.utils.clip_grad_norm_(parameter, clip.CLIP_VALUE, clip.NORM_TYPE)

    optimizer.register_step_pre_hook(before_step)
