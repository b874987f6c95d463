"""Configs written for versions 0 and 1, from before detectron2's first release.

A version step is a list of renamed keys; version 2 also gave the anchors of RPN and RetinaNet one place.
"""

import logging

from .config import CfgNode
from .defaults import _C

__all__ = ["downgrade_config", "guess_version", "upgrade_config"]

# version -> {key before it: key from it on}
_RENAMED_IN: dict[int, dict[str, str]] = {
    1: {"MODEL.RPN_HEAD.NAME": "MODEL.RPN.HEAD_NAME"},
    2: {
        "MODEL.WEIGHT": "MODEL.WEIGHTS",
        "MODEL.PANOPTIC_FPN.SEMANTIC_LOSS_SCALE": "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT",
        "MODEL.PANOPTIC_FPN.RPN_LOSS_SCALE": "MODEL.RPN.LOSS_WEIGHT",
        "MODEL.PANOPTIC_FPN.INSTANCE_LOSS_SCALE": "MODEL.PANOPTIC_FPN.INSTANCE_LOSS_WEIGHT",
        "MODEL.PANOPTIC_FPN.COMBINE_ON": "MODEL.PANOPTIC_FPN.COMBINE.ENABLED",
        "MODEL.PANOPTIC_FPN.COMBINE_OVERLAP_THRESHOLD": "MODEL.PANOPTIC_FPN.COMBINE.OVERLAP_THRESH",
        "MODEL.PANOPTIC_FPN.COMBINE_STUFF_AREA_LIMIT": "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT",
        "MODEL.PANOPTIC_FPN.COMBINE_INSTANCES_CONFIDENCE_THRESHOLD": (
            "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH"
        ),
        "MODEL.ROI_HEADS.SCORE_THRESH": "MODEL.ROI_HEADS.SCORE_THRESH_TEST",
        "MODEL.ROI_HEADS.NMS": "MODEL.ROI_HEADS.NMS_THRESH_TEST",
        "MODEL.RETINANET.INFERENCE_SCORE_THRESHOLD": "MODEL.RETINANET.SCORE_THRESH_TEST",
        "MODEL.RETINANET.INFERENCE_TOPK_CANDIDATES": "MODEL.RETINANET.TOPK_CANDIDATES_TEST",
        "MODEL.RETINANET.INFERENCE_NMS_THRESHOLD": "MODEL.RETINANET.NMS_THRESH_TEST",
        "TEST.DETECTIONS_PER_IMG": "TEST.DETECTIONS_PER_IMAGE",
        "TEST.AUG_ON": "TEST.AUG.ENABLED",
        "TEST.AUG_MIN_SIZES": "TEST.AUG.MIN_SIZES",
        "TEST.AUG_MAX_SIZE": "TEST.AUG.MAX_SIZE",
        "TEST.AUG_FLIP": "TEST.AUG.FLIP",
    },
}

# Keys of version 1 by which a file without a version is recognized.
_SIGNS_OF_VERSION_1 = ("MODEL.WEIGHT", "TEST.AUG_ON")

# Under MODEL.ANCHOR_GENERATOR; up to version 1 with the prefix ANCHOR_ under MODEL.RPN and MODEL.RETINANET.
_ANCHOR_KEYS = ("ASPECT_RATIOS", "SIZES")


def upgrade_config(cfg: CfgNode, to_version: int | None = None) -> CfgNode:
    """Bring a complete config to a newer version.

    Args:
        cfg: has every key of the version that its `VERSION` names, and any others. Not changed.
        to_version: the version wanted, by default the latest.

    Raises:
        AssertionError: the config is newer than `to_version`.
    """
    cfg = cfg.clone()
    to_version = _C.VERSION if to_version is None else to_version
    assert cfg.VERSION <= to_version, f"Cannot upgrade from v{cfg.VERSION} to v{to_version}!"
    while cfg.VERSION < to_version:
        cfg.VERSION += 1
        for old, new in _RENAMED_IN[cfg.VERSION].items():
            _put(cfg, new, _take(cfg, old))
        if cfg.VERSION == 2:
            _join_anchors(cfg)
    return cfg


def downgrade_config(cfg: CfgNode, to_version: int) -> CfgNode:
    """Bring a complete config to an older version, so that a file of that version can be merged into it.

    Args:
        cfg: as for `upgrade_config`.
        to_version: 0, 1 or 2.

    Raises:
        AssertionError: the config is older than `to_version`.
    """
    cfg = cfg.clone()
    assert cfg.VERSION >= to_version, f"Cannot downgrade from v{cfg.VERSION} to v{to_version}!"
    while cfg.VERSION > to_version:
        for old, new in _RENAMED_IN[cfg.VERSION].items():
            _put(cfg, old, _take(cfg, new))
        if cfg.VERSION == 2:
            _part_anchors(cfg)
        cfg.VERSION -= 1
    return cfg


def guess_version(cfg: CfgNode, filename: str) -> int:
    """Version of a file that does not state it, with a warning: 1 if it has a key of that version, else the latest.

    Args:
        cfg: the content of the file.
        filename: named in the warning.
    """
    logger = logging.getLogger(__name__)
    if any(_has(cfg, key) for key in _SIGNS_OF_VERSION_1):
        logger.warning(f"Config '{filename}' has no VERSION. Assuming it to be v1.")
        return 1
    logger.warning(f"Config '{filename}' has no VERSION. Assuming it to be compatible with latest v{_C.VERSION}.")
    return _C.VERSION


def _part_anchors(cfg: CfgNode) -> None:
    for key in _ANCHOR_KEYS:
        anchors = _take(cfg, f"MODEL.ANCHOR_GENERATOR.{key}")
        for owner in (cfg.MODEL.RPN, cfg.MODEL.RETINANET):
            owner[f"ANCHOR_{key}"] = anchors
    cfg.MODEL.RETINANET.ANCHOR_STRIDES = []  # nothing ever read it


def _join_anchors(cfg: CfgNode) -> None:
    used, unused = ("RETINANET", "RPN") if cfg.MODEL.META_ARCHITECTURE == "RetinaNet" else ("RPN", "RETINANET")
    for key in _ANCHOR_KEYS:
        _put(cfg, f"MODEL.ANCHOR_GENERATOR.{key}", _take(cfg, f"MODEL.{used}.ANCHOR_{key}"))
        del cfg.MODEL[unused][f"ANCHOR_{key}"]
    del cfg.MODEL.RETINANET["ANCHOR_STRIDES"]


def _has(cfg: CfgNode, key: str) -> bool:
    first, _, rest = key.partition(".")
    return isinstance(cfg, CfgNode) and first in cfg and (not rest or _has(cfg[first], rest))


def _put(cfg: CfgNode, key: str, value: object) -> None:
    """Set a dotted key, making the nodes above it."""
    first, _, rest = key.partition(".")
    if rest:
        _put(cfg.setdefault(first, CfgNode()), rest, value)
    else:
        cfg[first] = value


def _take(cfg: CfgNode, key: str) -> object:
    """Remove a dotted key, and nodes that are empty without it; return its value."""
    first, _, rest = key.partition(".")
    if not rest:
        return cfg.pop(first)
    value = _take(cfg[first], rest)
    if not cfg[first]:
        del cfg[first]
    return value
