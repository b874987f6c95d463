"""A model made fast, or small in memory, for training."""

import torch
from detectron2.config import CfgNode
from torch import nn

from ..modeling.detector import SparseRCNN
from ..modeling.gradient_checkpointing import checkpoint_gradients
from ..modeling.roi_routing import FusedPooler
from .trained_convolution import speed_up_convolutions
from .trained_linear import speed_up_dynamic_layers


def prepare_for_training(cfg: CfgNode, model: nn.Module) -> None:
    """Apply what the config asks for, in place. Results and names in checkpoints stay the same.

    `SOLVER.FAST`, `MODEL.GRADIENT_CHECKPOINTING` and `SOLVER.COMPILE` decide.
    """
    if cfg.SOLVER.FAST:
        # Convolutions take images in the layout of their weights, and so do the feature maps that follow.
        model.to(memory_format=torch.channels_last)
        speed_up_convolutions(model, fold_norms=True, cpu_kernels=True)
        speed_up_dynamic_layers(model)
    if cfg.MODEL.GRADIENT_CHECKPOINTING:
        checkpoint_gradients(model)
    if cfg.SOLVER.COMPILE:
        _compile(model)


def _compile(model: nn.Module) -> None:
    if not isinstance(model, SparseRCNN):
        model.compile()
        return
    # Image sizes vary, so that the backbone is compiled for symbolic ones; the shapes in a stage do not depend on them.
    model.backbone.compile(dynamic=True)
    for stage in model.head.head_series:
        stage.compile(dynamic=False)
    pooler = model.head.routing.pooler
    if isinstance(pooler, FusedPooler):
        pooler.bins.compile(dynamic=False)
