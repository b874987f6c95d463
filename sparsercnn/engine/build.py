"""The model that a config describes: built, made ready for training, and for inference.

The one place where the project meets `sparsercnn.fast`. With `SOLVER.FAST False` and `TEST.PREPARE False` nothing of
that folder is imported.
"""

import copy

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model as build_registered_model
from torch import nn

from ..architectures import package_errors
from ..config import AMP_PRECISIONS, PRECISIONS
from ..errors import check_choice
from ..modeling.inference import InferenceModel
from .gradient_checkpointing import checkpoint_gradients


def build_model(cfg: CfgNode) -> nn.Module:
    """Build the meta-architecture `MODEL.META_ARCHITECTURE` with random weights, on `MODEL.DEVICE`.

    Raises:
        InputError: a part of the model cannot be built as the config says.
    """
    with package_errors():
        return build_registered_model(cfg)


def prepare_for_training(cfg: CfgNode, model: nn.Module) -> None:
    """Apply `MODEL.GRADIENT_CHECKPOINTING` and `SOLVER.FAST`, in place; parameters and their names stay the same."""
    if cfg.MODEL.GRADIENT_CHECKPOINTING:
        checkpoint_gradients(model)
    if cfg.SOLVER.FAST:
        from ..fast.training import prepare_for_training

        prepare_for_training(model)


def amp_precision(cfg: CfgNode) -> torch.dtype | None:
    """The dtype of autocast in training that `SOLVER.AMP` names, None for full precision.

    Raises:
        InputError: `SOLVER.AMP.PRECISION` is unknown.
    """
    name = cfg.SOLVER.AMP.PRECISION
    check_choice("SOLVER.AMP.PRECISION", name, AMP_PRECISIONS)
    if not cfg.SOLVER.AMP.ENABLED:
        return None
    if name != "auto":
        return PRECISIONS[name]
    from ..fast.training import fastest_precision

    precision = fastest_precision(torch.device(cfg.MODEL.DEVICE).type)
    return None if precision == torch.float32 else precision


def build_inference_model(cfg: CfgNode, model: nn.Module) -> InferenceModel:
    """A copy of `model` for inference as `TEST.PREPARE`, `PRECISION` and `COMPILE` say.

    Raises:
        InputError: `TEST.PRECISION` is unknown.
    """
    check_choice("TEST.PRECISION", cfg.TEST.PRECISION, PRECISIONS)
    dtype = PRECISIONS[cfg.TEST.PRECISION]
    if cfg.TEST.PREPARE:
        from ..fast.inference import prepare_for_inference

        return prepare_for_inference(model, dtype, cfg.TEST.COMPILE)
    return InferenceModel(copy.deepcopy(model), next(model.parameters()).device.type, dtype)
