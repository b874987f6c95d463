"""Optimizers: detectron2's parameter groups, a multiplier for the backbone, whole-model gradient clipping."""

from typing import cast

import torch
from detectron2.config import CfgNode
from detectron2.solver import get_default_optimizer_params
from detectron2.solver.build import maybe_add_gradient_clipping
from torch import nn
from torch.optim import Optimizer

from ..errors import check_choice

OPTIMIZERS = ("ADAMW", "SGD")


def build_optimizer(cfg: CfgNode, model: nn.Module) -> Optimizer:
    """AdamW or SGD (`SOLVER.OPTIMIZER`) over the trainable parameters of `model`.

    Parameters with "backbone" in their name learn at `SOLVER.BASE_LR * SOLVER.BACKBONE_MULTIPLIER`. Weight decay of
    norms and biases and the learning rate of biases are as detectron2's keys say; `SOLVER.WEIGHT_DECAY_NORM` None, the
    default of Sparse R-CNN, is that of all parameters. Those with the same options share one group, so that few kernels
    update all of them at once.

    `SOLVER.CLIP_GRADIENTS` with `CLIP_TYPE: full_model` scales all gradients together to the norm `CLIP_VALUE`
    whenever the optimizer steps; the other types are detectron2's, which clip each parameter by itself. A gradient
    scaler must have unscaled the gradients before the step, as `TrainStep` does.

    Raises:
        InputError: `SOLVER.OPTIMIZER` is unknown.
    """
    solver = cfg.SOLVER
    check_choice("SOLVER.OPTIMIZER", solver.OPTIMIZER, OPTIMIZERS)
    groups = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay=solver.WEIGHT_DECAY,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        lr_factor_func=lambda name: solver.BACKBONE_MULTIPLIER if "backbone" in name else 1.0,
    )
    if solver.OPTIMIZER == "ADAMW":
        optimizer: Optimizer = torch.optim.AdamW(groups, solver.BASE_LR, weight_decay=solver.WEIGHT_DECAY, fused=True)
    else:
        # Not fused: if the very first step is skipped because float16 overflowed, PyTorch's fused kernels go on with
        # momenta that were never written.
        optimizer = torch.optim.SGD(
            groups,
            solver.BASE_LR,
            momentum=solver.MOMENTUM,
            nesterov=solver.NESTEROV,
            weight_decay=solver.WEIGHT_DECAY,
            foreach=True,
        )

    clip = solver.CLIP_GRADIENTS
    if clip.ENABLED and clip.CLIP_TYPE == "full_model":
        _clip_before_step(optimizer, clip.CLIP_VALUE, clip.NORM_TYPE)
        return optimizer
    return cast(Optimizer, maybe_add_gradient_clipping(cfg, optimizer))  # given a class it returns a class


def _clip_before_step(optimizer: Optimizer, max_norm: float, norm_type: float) -> None:
    def clip(optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, max_norm, norm_type)

    optimizer.register_step_pre_hook(clip)
