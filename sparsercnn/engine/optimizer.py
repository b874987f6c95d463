"""Optimizer as published: weight decay on every parameter, a multiplier for the backbone, whole-model clipping."""

from collections import defaultdict
from typing import cast

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import maybe_add_gradient_clipping
from torch import nn
from torch.optim import Optimizer

from ..errors import check_choice

OPTIMIZERS = ("ADAMW", "SGD")


def build_optimizer(cfg: CfgNode, model: nn.Module) -> Optimizer:
    """AdamW or SGD (`SOLVER.OPTIMIZER`) over the trainable parameters of `model`.

    Parameters with "backbone" in their name learn at `SOLVER.BASE_LR * SOLVER.BACKBONE_MULTIPLIER`. Those with the
    same learning rate share one group, so that few kernels update all of them at once.

    `SOLVER.CLIP_GRADIENTS` with `CLIP_TYPE: full_model` scales all gradients together to the norm `CLIP_VALUE`
    whenever the optimizer steps; the other types are detectron2's, which clip each parameter by itself. A gradient
    scaler must have unscaled the gradients before the step, as `TrainStep` does.

    Raises:
        InputError: `SOLVER.OPTIMIZER` is unknown.
    """
    solver = cfg.SOLVER
    check_choice("SOLVER.OPTIMIZER", solver.OPTIMIZER, OPTIMIZERS)
    groups = _groups_by_learning_rate(model, solver.BASE_LR, solver.BACKBONE_MULTIPLIER)
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


def _groups_by_learning_rate(model: nn.Module, base_lr: float, backbone_multiplier: float) -> list[dict]:
    groups = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[base_lr * (backbone_multiplier if "backbone" in name else 1.0)].append(parameter)
    return [{"params": parameters, "lr": lr} for lr, parameters in groups.items()]


def _clip_before_step(optimizer: Optimizer, max_norm: float, norm_type: float) -> None:
    def clip(optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, max_norm, norm_type)

    optimizer.register_step_pre_hook(clip)
