"""Learning-rate schedules: detectron2's, and a one-cycle schedule for small budgets."""

from detectron2.config import CfgNode
from detectron2.solver import LRMultiplier
from detectron2.solver import build_lr_scheduler as build_detectron2_lr_scheduler
from fvcore.common.param_scheduler import CompositeParamScheduler, CosineParamScheduler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..errors import InputError, check_choice

DETECTRON2_SCHEDULES = ("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR")
SCHEDULES = (*DETECTRON2_SCHEDULES, "OneCycle")


def build_lr_scheduler(cfg: CfgNode, optimizer: Optimizer) -> LRScheduler:
    """The schedule that `SOLVER.LR_SCHEDULER_NAME` names: one of detectron2's or `OneCycle`.

    OneCycle (Smith, Super-Convergence, 2018): the rate rises from `BASE_LR * WARMUP_FACTOR` to `BASE_LR` in
    `WARMUP_ITERS` iterations and falls to `BASE_LR_END` at `MAX_ITER`, both along half a cosine.

    Raises:
        InputError: the name is unknown, or the one-cycle warm-up is not shorter than the training.
    """
    solver = cfg.SOLVER
    check_choice("SOLVER.LR_SCHEDULER_NAME", solver.LR_SCHEDULER_NAME, SCHEDULES)
    if solver.LR_SCHEDULER_NAME in DETECTRON2_SCHEDULES:
        return build_detectron2_lr_scheduler(cfg, optimizer)
    rise = solver.WARMUP_ITERS / solver.MAX_ITER
    if not 0 < rise < 1:
        raise InputError(
            f"OneCycle needs 0 < SOLVER.WARMUP_ITERS < SOLVER.MAX_ITER, not {solver.WARMUP_ITERS} and {solver.MAX_ITER}"
        )
    up = CosineParamScheduler(solver.WARMUP_FACTOR, 1.0)
    down = CosineParamScheduler(1.0, solver.BASE_LR_END / solver.BASE_LR)
    cycle = CompositeParamScheduler([up, down], [rise, 1 - rise], ["rescaled", "rescaled"])
    return LRMultiplier(optimizer, multiplier=cycle, max_iter=solver.MAX_ITER)
