"""Checks of a config before training starts, so that a mistake costs a second and gets one clear line."""

import logging
import os
import tempfile
from operator import attrgetter

import torch
from detectron2.config import CfgNode
from fvcore.common.registry import Registry

from ...config_file import leaves
from ...data import check_datasets
from ...errors import InputError, check_choice, one_line
from ...evaluation.test_time_augmentation import check_scale_ranges
from ..build import build_model
from ..checkpoints.checkpointer import resumable_checkpoints
from .model_table import MODEL_TABLE
from .requirements import Checks, describe
from .run_table import RUN_TABLE

TABLE = (*RUN_TABLE, *MODEL_TABLE)

# Larger integers lose digits where they meet floating-point numbers.
LARGEST_INTEGER = 2**53

logger = logging.getLogger(__name__)


def check_config(cfg: CfgNode, resume: bool = False, eval_only: bool = False, processes: int = 1) -> None:
    """Check that everything the config names exists and its numbers make sense: model, weights, data sets, output.

    Args:
        cfg: the config.
        resume: continue from the checkpoint in `OUTPUT_DIR`, for which `MODEL.WEIGHTS` does not matter. A training that
            has none yet starts from the beginning; an evaluation needs one.
        eval_only: the training data need not be there, but there must be weights.
        processes: that share the training batch.

    Raises:
        InputError: the first mistake.
    """
    has_checkpoint = bool(resumable_checkpoints(cfg.OUTPUT_DIR))
    if resume and eval_only and not has_checkpoint:
        raise InputError(f"--resume: there is no checkpoint in OUTPUT_DIR {cfg.OUTPUT_DIR} to evaluate")
    if eval_only and not resume and not cfg.MODEL.WEIGHTS:
        raise InputError("MODEL.WEIGHTS is empty: --eval-only would measure a model that learned nothing")
    check_model(cfg, with_weights=not (resume and has_checkpoint))
    if not eval_only and cfg.SOLVER.IMS_PER_BATCH % processes:
        raise InputError(
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}, which {processes} processes cannot share equally; "
            f"choose a multiple of {processes}"
        )
    reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
    if not eval_only and reference and cfg.SOLVER.IMS_PER_BATCH % reference:
        raise InputError(
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}, which SOLVER.REFERENCE_WORLD_SIZE {reference} cannot "
            f"share equally; choose a multiple of {reference}"
        )
    check_datasets(cfg, train=not eval_only)
    if not eval_only:
        _say_what_is_doubtful(cfg)
    _check_writable(cfg.OUTPUT_DIR)


def check_model(cfg: CfgNode, with_weights: bool = True) -> None:
    """Check all that needs no data: names, numbers, that a model can be built of them, and that the weights are there.

    Args:
        cfg: the config.
        with_weights: `MODEL.WEIGHTS` is going to be read.

    Raises:
        InputError: the first mistake.
    """
    for key, value in leaves(cfg):
        _check_number(key, value)
    for checks in TABLE:
        if checks.applies(cfg):
            _check_by_table(cfg, checks)
    augmentation = cfg.TEST.AUG
    if augmentation.ENABLED and augmentation.CVPODS_TTA and augmentation.SCALE_FILTER:
        check_scale_ranges(augmentation.MIN_SIZES, augmentation.SCALE_RANGES)
    weights = cfg.MODEL.WEIGHTS
    is_local = "://" not in weights
    if with_weights and weights and is_local and not os.path.isfile(weights.partition("?")[0]):
        raise InputError(f"MODEL.WEIGHTS: there is no file {one_line(weights)}")
    _check_builds(cfg)


def _check_number(key: str, value: object) -> None:
    for x in value if isinstance(value, list | tuple) else [value]:
        if isinstance(x, float) and x != x:
            raise InputError(f"{key} is {value}; nan is no number")
        if isinstance(x, int) and abs(x) > LARGEST_INTEGER:
            raise InputError(f"{key} is an integer beyond {LARGEST_INTEGER}")


def _check_by_table(cfg: CfgNode, checks: Checks) -> None:
    for key, choices in checks.choices.items():
        names = sorted(name for name, _ in choices) if isinstance(choices, Registry) else choices
        check_choice(key, attrgetter(key)(cfg), names)
    for key, requirement in checks.values.items():
        value = attrgetter(key)(cfg)
        if not requirement.holds(value):
            raise InputError(f"{describe([(key, value)])}; it must {requirement.says}")
    for keys, relation in checks.relations.items():
        values = attrgetter(*keys)(cfg)
        if not relation.holds(*values):
            raise InputError(f"{describe(zip(keys, values, strict=True))}; {relation.says}")


def _say_what_is_doubtful(cfg: CfgNode) -> None:
    for checks in TABLE:
        for keys, relation in checks.doubtful.items():
            values = attrgetter(*keys)(cfg)
            if checks.applies(cfg) and not relation.holds(*values):
                logger.warning(f"{describe(zip(keys, values, strict=True))}; {relation.says}.")


def _check_builds(cfg: CfgNode) -> None:
    """Build the model without memory for its weights, where that can be done: some mistakes only its parts know."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.TIMM.PRETRAINED = False  # these need not be fetched twice
    with torch.random.fork_rng(devices=[]):
        for device in ("meta", "cpu"):
            cfg.MODEL.DEVICE = device
            try:
                with torch.device(device):
                    build_model(cfg)
                return
            except InputError:
                raise
            except Exception:  # not every model can be built so; the trace of a fault belongs where it is built to run
                continue


def _check_writable(folder: str) -> None:
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"OUTPUT_DIR {folder!r} is no folder that can be written to: {reason}") from error
