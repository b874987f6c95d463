"""What a checkpoint says about itself, so that it can be used without anything beside it."""

import importlib.metadata
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

METADATA = "metadata"
"""The entry of a checkpoint that holds what `run_metadata` returns."""


def run_metadata(cfg: CfgNode) -> dict[str, Any]:
    """Plain values to store beside the weights of a model that is trained by a config.

    Args:
        cfg: the config. Its first training set must have been loaded if the names of its classes are in its files.

    Returns:
        "config", the whole config as YAML; "class_names", those of the first training set, None if it has none;
        "versions" of sparsercnn and torch; "score_threshold", the score over which to show a detection, None until one
        has been chosen.
    """
    names = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get("thing_classes") if cfg.DATASETS.TRAIN else None
    return {
        "config": cfg.dump(),
        "class_names": None if names is None else list(map(str, names)),
        "versions": {"sparsercnn": _version(), "torch": str(torch.__version__)},
        "score_threshold": None,
    }


def _version() -> str:
    try:
        return importlib.metadata.version("sparsercnn")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
