"""What a file of tensors means: the model in it, by the customs of PyTorch, detectron2, its model zoo, pycls."""

from typing import Any

import numpy as np
import torch

from .files import UnusableFileError

# Names listed when there is no model.
NAMES_SHOWN = 5
# Longer than that of any tensor; names are part of messages.
MAX_NAME = 500


def as_checkpoint(content: Any, filename: str, match_endings: bool) -> dict[str, Any]:
    """The content of a file as a dict with "model", tensors by their names, and whatever else is there.

    `.pkl` files that do not say who wrote them are Caffe2's; `.pyth` files are pycls's. Any other file may hold the
    dict of tensors alone.

    Args:
        content: what `read_tensors` returned. Arrays in it become tensors, in place.
        filename: its file, whose ending counts.
        match_endings: whether names are to be matched to those of the model by their endings.

    Raises:
        UnusableFileError: there is no such dict.
    """
    if not isinstance(content, dict):
        raise UnusableFileError(f"{filename} is not a checkpoint: it holds a {type(content).__name__}, not a dict")
    if filename.endswith(".pkl"):
        checkpoint = _of_model_zoo(content)
    elif filename.endswith(".pyth"):
        weights = _without(content.get("model_state"), "num_batches_tracked")
        checkpoint = {"model": weights, "__author__": "pycls", "matching_heuristics": True}
    else:
        checkpoint = content if "model" in content else {"model": content}
        if match_endings:
            checkpoint["matching_heuristics"] = True
    _make_tensors(checkpoint["model"], filename)
    return checkpoint


def _of_model_zoo(content: dict) -> dict[str, Any]:
    if "model" in content and "__author__" in content:
        return content
    weights = _without(content.get("blobs", content), "_momentum")
    return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}


def _without(weights: Any, ending: str) -> Any:
    if not isinstance(weights, dict):
        return weights
    return {name: value for name, value in weights.items() if not str(name).endswith(ending)}


def _make_tensors(model: Any, filename: str) -> None:
    """Check that these are tensors or arrays by their names, and make tensors of them all, in place."""
    if not isinstance(model, dict) or not model:
        raise UnusableFileError(f"{filename} holds no model: its model is {_described(model)}")
    for name, value in model.items():
        named = isinstance(name, str) and name.isprintable() and len(name) <= MAX_NAME
        if isinstance(value, np.ndarray) and named:
            # One at a time, so that there are never two copies of all.
            model[name] = value = _tensor(value)
        if not isinstance(value, torch.Tensor) or not named:
            names = ", ".join(ascii(key)[:40] for key in list(model)[:NAMES_SHOWN])
            raise UnusableFileError(
                f"{filename} holds no model: the entry {ascii(name)[:80]} is {_described(value)}, not a tensor with a "
                f"name; there should be tensors, or a dict of tensors called 'model', but it has {names}"
                + (", …" if len(model) > NAMES_SHOWN else "")
            )


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C"))


def _described(value: Any) -> str:
    kind = type(value).__name__
    return f"an empty {kind}" if isinstance(value, dict | list | tuple) and not value else f"a {kind}"
