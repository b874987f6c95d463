"""What a checkpoint says about itself, so that it can be used without anything beside it."""

import importlib.metadata
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from .files import UnusableFileError

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


def checked_metadata(content: Any, filename: str) -> dict[str, Any] | None:
    """What a checkpoint says about itself, None if it says nothing; unlike `run_metadata`, it may lack entries.

    Args:
        content: what `read_tensors` returned.
        filename: its file, for the message.

    Raises:
        UnusableFileError: it says something else than `run_metadata`.
    """
    metadata = content.get(METADATA) if isinstance(content, dict) else None
    if metadata is None:
        return None
    types = {"config": str, "class_names": list, "versions": dict, "score_threshold": float}
    if not isinstance(metadata, dict):
        raise UnusableFileError(f"{filename}: what it says about itself is a {type(metadata).__name__}")
    for name, kind in types.items():
        value = metadata.get(name)
        if value is not None and not isinstance(value, kind):
            raise UnusableFileError(f"{filename}: its {name} is a {type(value).__name__}, not a {kind.__name__}")
    if not all(isinstance(name, str) for name in metadata.get("class_names") or ()):
        raise UnusableFileError(f"{filename}: a name of its classes is none")
    return metadata


def _version() -> str:
    try:
        return importlib.metadata.version("sparsercnn")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
