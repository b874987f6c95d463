"""Training and evaluation: optimizer, schedule, the training step, safe checkpoints, and the `Trainer` around them."""

from .build import build_inference_model, build_model
from .checkpoints.checkpointer import SparseRCNNCheckpointer
from .checks.config_checks import check_config, check_model
from .optimizer import build_optimizer
from .schedule import build_lr_scheduler
from .step import TrainStep
from .trainer import Trainer

__all__ = [
    "SparseRCNNCheckpointer",
    "TrainStep",
    "Trainer",
    "build_inference_model",
    "build_lr_scheduler",
    "build_model",
    "build_optimizer",
    "check_config",
    "check_model",
]
