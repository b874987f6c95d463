"""Checks of a config before training starts, so that a mistake costs a second and gets one clear line."""

import os
import tempfile
from collections.abc import Iterable
from operator import attrgetter

from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY
from fvcore.common.registry import Registry

from ..config import AMP_PRECISIONS, PRECISIONS
from ..data import check_datasets
from ..errors import InputError, check_choice
from ..evaluation.test_time_augmentation import check_scale_ranges
from ..modeling.class_loss import CLASS_LOSSES
from ..modeling.initial_boxes import INITIAL_BOXES
from ..modeling.matcher import ASSIGNMENTS
from ..modeling.roi_routing import POOLERS, ROUTINGS
from .checkpoint import resumable_checkpoints
from .optimizer import OPTIMIZERS
from .schedule import SCHEDULES

CHOICES: dict[str, Iterable[str]] = {
    "MODEL.ROI_ROUTING.MODE": ROUTINGS,
    "MODEL.ROI_ROUTING.POOLER": POOLERS,
    "MODEL.SparseRCNN.ASSIGNMENT": ASSIGNMENTS,
    "MODEL.SparseRCNN.CLASS_LOSS": CLASS_LOSSES,
    "MODEL.SparseRCNN.PROPOSALS": (*INITIAL_BOXES, "dense"),
    "SOLVER.OPTIMIZER": OPTIMIZERS,
    "SOLVER.LR_SCHEDULER_NAME": SCHEDULES,
    "SOLVER.AMP.PRECISION": AMP_PRECISIONS,
    "TEST.PRECISION": PRECISIONS,
}
SMALLEST_VALUES = {
    "SOLVER.MAX_ITER": 1,
    "SOLVER.IMS_PER_BATCH": 1,
    "SOLVER.ACCUMULATE": 1,
    "SOLVER.CHECKPOINT_PERIOD": 1,
    "SOLVER.CHECKPOINTS_KEPT": 0,
    "DATALOADER.NUM_WORKERS": 0,
    "INPUT.MIN_SIZE_TEST": 0,
    "INPUT.MAX_SIZE_TEST": 1,
    "TEST.EVAL_PERIOD": 0,
    "TEST.AUG.MAX_SIZE": 1,
    "MODEL.SparseRCNN.NUM_CLASSES": 1,
    "MODEL.SparseRCNN.NUM_PROPOSALS": 1,
    "MODEL.SparseRCNN.NHEADS": 1,
    "MODEL.SparseRCNN.NUM_HEADS": 1,
    "MODEL.SparseRCNN.DENOISING_QUERIES": 0,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 1,
    "MODEL.ROI_ROUTING.CANONICAL_BOX_SIZE": 1,
}


def check_config(cfg: CfgNode, resume: bool = False, eval_only: bool = False, processes: int = 1) -> None:
    """Check that everything the config names exists and its numbers make sense: model, weights, data sets, output.

    Args:
        cfg: the config.
        resume: continue from the checkpoint in `OUTPUT_DIR`, for which `MODEL.WEIGHTS` does not matter. A training that
            has none yet starts from the beginning; an evaluation needs one.
        eval_only: the training data need not be there.
        processes: that share the training batch.

    Raises:
        InputError: the first mistake.
    """
    has_checkpoint = bool(resumable_checkpoints(cfg.OUTPUT_DIR))
    if resume and eval_only and not has_checkpoint:
        raise InputError(f"--resume: there is no checkpoint in OUTPUT_DIR {cfg.OUTPUT_DIR} to evaluate")
    check_model(cfg, with_weights=not (resume and has_checkpoint))
    if not eval_only and cfg.SOLVER.IMS_PER_BATCH % processes:
        raise InputError(
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}, which {processes} processes cannot share equally; "
            f"choose a multiple of {processes}"
        )
    _check_evaluation(cfg)
    _check_proposals(cfg)
    check_datasets(cfg, train=not eval_only)
    _check_writable(cfg.OUTPUT_DIR)


def check_model(cfg: CfgNode, with_weights: bool = True) -> None:
    """Check all that needs neither the model nor data: names, numbers, and that the weights are there.

    Args:
        cfg: the config.
        with_weights: `MODEL.WEIGHTS` is going to be read.

    Raises:
        InputError: the first mistake.
    """
    for key, registry in (("MODEL.META_ARCHITECTURE", META_ARCH_REGISTRY), ("MODEL.BACKBONE.NAME", BACKBONE_REGISTRY)):
        check_choice(key, attrgetter(key)(cfg), _names(registry))
    for key, choices in CHOICES.items():
        check_choice(key, attrgetter(key)(cfg), choices)
    for key, smallest in SMALLEST_VALUES.items():
        if attrgetter(key)(cfg) < smallest:
            raise InputError(f"{key} is {attrgetter(key)(cfg)}; it must be at least {smallest}")
    if cfg.TEST.COMPILE and not cfg.TEST.PREPARE:
        raise InputError("TEST.COMPILE is True, but TEST.PREPARE is False: set TEST.PREPARE to True")
    weights = cfg.MODEL.WEIGHTS
    is_local = "://" not in weights
    if with_weights and weights and is_local and not os.path.isfile(weights.partition("?")[0]):
        raise InputError(f"MODEL.WEIGHTS: there is no file {weights}")


def _names(registry: Registry) -> list[str]:
    return sorted(name for name, _ in registry)


def _check_evaluation(cfg: CfgNode) -> None:
    """What evaluation reads only once training is over."""
    sizes = cfg.TEST.AUG.MIN_SIZES
    if cfg.TEST.AUG.ENABLED and not (sizes and all(isinstance(size, int) and size > 0 for size in sizes)):
        raise InputError(f"TEST.AUG.MIN_SIZES is {sizes}; it must list the shorter sides in pixels of the views")
    if cfg.TEST.AUG.ENABLED and cfg.TEST.AUG.CVPODS_TTA and cfg.TEST.AUG.SCALE_FILTER:
        check_scale_ranges(sizes, cfg.TEST.AUG.SCALE_RANGES)
    for entry in cfg.TEST.EXPECTED_RESULTS:
        if not _is_expected_result(entry):
            raise InputError(
                f"TEST.EXPECTED_RESULTS: {entry} must be [task, metric, value, tolerance], like ['bbox', 'AP', 42, 0.5]"
            )


def _check_proposals(cfg: CfgNode) -> None:
    """What says that proposals are precomputed must agree with what needs them."""
    if cfg.MODEL.PROPOSAL_GENERATOR.NAME == "PrecomputedProposals" and not cfg.MODEL.LOAD_PROPOSALS:
        raise InputError("MODEL.PROPOSAL_GENERATOR.NAME is PrecomputedProposals: set MODEL.LOAD_PROPOSALS to True")
    if cfg.MODEL.LOAD_PROPOSALS and cfg.TEST.AUG.ENABLED:
        raise InputError("TEST.AUG.ENABLED is True, but precomputed proposals (MODEL.LOAD_PROPOSALS) fit no other view")


def _is_expected_result(entry: object) -> bool:
    if not isinstance(entry, list | tuple) or len(entry) != 4:
        return False
    return all(isinstance(x, str) for x in entry[:2]) and all(isinstance(x, int | float) for x in entry[2:])


def _check_writable(folder: str) -> None:
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"OUTPUT_DIR {folder!r} is no folder that can be written to: {error.strerror}") from error
