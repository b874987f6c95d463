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
from ..errors import InputError, check_choice
from ..evaluation.proposal_count import with_proposals
from ..modeling.detector import SparseRCNN
from ..modeling.inference import InferenceModel
from ..modeling.roi_routing import LevelRouting
from .gradient_checkpointing import checkpoint_gradients
from .training_boxes import start_from_training_boxes


def build_model(cfg: CfgNode) -> nn.Module:
    """Build the meta-architecture `MODEL.META_ARCHITECTURE` with random weights, on `MODEL.DEVICE`.

    Raises:
        InputError: a part of the model cannot be built as the config says.
    """
    with package_errors():
        model = build_registered_model(cfg)
    mode = cfg.MODEL.ROI_ROUTING.MODE
    if mode != "level" and not any(isinstance(module, LevelRouting) for module in model.modules()):
        raise InputError(
            f"MODEL.ROI_ROUTING.MODE is {mode!r}, which {cfg.MODEL.META_ARCHITECTURE} with MODEL.ROI_HEADS.NAME "
            f"{cfg.MODEL.ROI_HEADS.NAME} does not read: set the mode to level, or the name to RoutedROIHeads"
        )
    return model


def prepare_for_training(cfg: CfgNode, model: nn.Module) -> None:
    """Apply `PROPOSALS kmeans`, `MODEL.GRADIENT_CHECKPOINTING` and `SOLVER.FAST`, in place.

    Parameters and their names stay the same.
    """
    if cfg.MODEL.SparseRCNN.PROPOSALS == "kmeans" and isinstance(model, SparseRCNN):
        start_from_training_boxes(cfg, model)
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
    """A copy of `model` for inference as `TEST.PREPARE`, `PRECISION`, `COMPILE` and `NUM_PROPOSALS` say.

    Raises:
        InputError: `TEST.PRECISION` is unknown, or the model cannot have so many proposals.
    """
    check_choice("TEST.PRECISION", cfg.TEST.PRECISION, PRECISIONS)
    if cfg.TEST.NUM_PROPOSALS:
        model = with_proposals(model, cfg.TEST.NUM_PROPOSALS)
    dtype = PRECISIONS[cfg.TEST.PRECISION]
    if cfg.TEST.PREPARE:
        from ..fast.inference import prepare_for_inference

        return prepare_for_inference(model, dtype, cfg.TEST.COMPILE)
    return InferenceModel(copy.deepcopy(model), next(model.parameters()).device.type, dtype)
