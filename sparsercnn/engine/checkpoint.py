"""Checkpoints that are written whole or not at all, read without running code, and refused when they do not fit."""

import os
import pickle
import re
import zipfile
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer

from ..errors import InputError
from .ema import CHECKPOINT_KEY, use_average
from .optimizer_state import from_old_layout

NAMES_SHOWN = 10
CLASS_LAYER = "class_logits"
PIXEL_STATISTICS = ("pixel_mean", "pixel_std")

# What NumPy arrays and numbers are pickled with, by the module names of NumPy 1 and 2.
ARRAY_GLOBALS = {("collections", "OrderedDict"), ("_codecs", "encode"), ("numpy", "ndarray"), ("numpy", "dtype")} | {
    (module, name)
    for module in ("numpy.core.multiarray", "numpy._core.multiarray")
    for name in ("_reconstruct", "scalar")
}
_scalar: Any = np.float64(0).__reduce__()[0]
torch.serialization.add_safe_globals([np.dtype, type(np.dtype(float)), _scalar])


class SparseRCNNCheckpointer(DetectionCheckpointer):
    """detectron2's checkpointer, for files that may come from strangers and for runs that may be killed.

    * A file holding anything but tensors, arrays and plain values is refused before any of its code could run.
    * Of a training that averages its weights the average is loaded, unless the training goes on.
    * A checkpoint appears under its name only when it is complete; so does the `last_checkpoint` tag.
    * Loading a checkpoint of another architecture is an `InputError` that lists what does not fit. Class layers of
      another size keep their initialization, with detectron2's warning, so that a model fine-tunes on other classes.
      A backbone alone (an ImageNet model) may have layers that this backbone lacks and the other way round, up to a
      quarter of them.

    Attributes:
        source: path of the file that was loaded last.
        names_in_file: names of the tensors of its model, in the file's order.
    """

    source = ""
    names_in_file: Sequence[str] = ()

    def save(self, name: str, **kwargs: Any) -> None:
        """Write the model, all checkpointables and `kwargs` to NAME.pth in the folder of this checkpointer."""
        if not self.save_dir or not self.save_to_disk:
            return
        state = {key: item.state_dict() for key, item in self.checkpointables.items()}
        target = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info(f"Saving checkpoint to {target}")
        _write_whole(target, lambda file: torch.save({"model": self.model.state_dict(), **state, **kwargs}, file))
        self.tag_last_checkpoint(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Make the file of this name in the folder the one that `resume_or_load` resumes from."""
        tag = os.path.join(self.save_dir, "last_checkpoint")
        _write_whole(tag, lambda file: file.write(last_filename_basename.encode()))

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict:
        """Load the model, and of `checkpointables` those named (None for all), from a path or URL.

        Raises:
            InputError: the file cannot be read, does not fit the model, or lacks one of the checkpointables.
        """
        self._wanted = list(self.checkpointables) if checkpointables is None else checkpointables
        try:
            return super().load(path, checkpointables)
        except (OSError, AssertionError) as error:  # fvcore asserts that there is a file
            raise InputError(f"weights {path} cannot be read: {error}") from error

    def _load_file(self, filename: str) -> dict:
        check_holds_data_only(filename)
        checkpoint = from_old_layout(super()._load_file(filename))
        self.source = filename
        self.names_in_file = tuple(checkpoint["model"])
        if CHECKPOINT_KEY not in self._wanted:
            use_average(checkpoint)
        if not checkpoint.keys() >= set(self._wanted):
            raise InputError(
                f"{filename} holds a model, but no state of a training to resume; start from it with MODEL.WEIGHTS"
            )
        return checkpoint

    def _load_model(self, checkpoint: dict) -> Any:
        names = set(checkpoint["model"])
        incompatible = super()._load_model(checkpoint)
        misfits = _misfits(incompatible)
        if any(name.startswith("head.head_series.") for name in names):
            refused = bool(misfits)
        else:
            misfits = {name: text for name, text in misfits.items() if name.startswith("backbone.") or name in names}
            refused = incompatible.incorrect_shapes or _over_a_quarter_differs(self.model, names, misfits)
        if refused:
            raise _misfit_error(self.source, list(misfits.values()))
        return incompatible


def _write_whole(path: str, write: Callable[[BinaryIO], object]) -> None:
    """A process killed while writing leaves a stray `.partial` file and the previous `path` untouched."""
    partial = f"{path}.partial"
    with open(partial, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def check_holds_data_only(filename: str) -> None:
    """Read a `.pth` or `.pkl` file without running code it may carry.

    Raises:
        InputError: the file is damaged, or holds objects other than tensors, arrays and plain values.
    """
    try:
        if filename.endswith(".pkl"):
            with open(filename, "rb") as file:
                _ArrayUnpickler(file, encoding="latin1").load()
        else:
            torch.load(filename, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(filename))
    except (pickle.UnpicklingError, EOFError, RuntimeError, LookupError, ValueError, AttributeError) as error:
        if re.search(r"unsupported (global|class|object)|unrecognized function", str(error), re.IGNORECASE):
            raise InputError(
                f"{filename} holds Python objects besides tensors; loading it could run any code, so it is refused. "
                "Save its state dict alone and load that"
            ) from error
        raise InputError(f"{filename} is damaged or not a checkpoint") from error


class _ArrayUnpickler(pickle.Unpickler):
    """Makes NumPy arrays and plain containers, nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ARRAY_GLOBALS:
            raise pickle.UnpicklingError(f"Unsupported object {module}.{name}")
        return super().find_class(module, name)


def _misfits(incompatible: Any) -> dict[str, str]:
    """What is wrong with each tensor that has another shape or no counterpart, class layers aside."""
    misfits = {name: f"{name}: not in the model" for name in incompatible.unexpected_keys}
    misfits |= {name: f"{name}: not in the file" for name in incompatible.missing_keys}
    for name, shape, expected in incompatible.incorrect_shapes:
        misfits[name] = f"{name}: shape {shape} in the file, {expected} in the model"
    return {name: text for name, text in misfits.items() if not (CLASS_LAYER in name or name in PIXEL_STATISTICS)}


def _over_a_quarter_differs(model: torch.nn.Module, names: set[str], misfits: dict[str, str]) -> bool:
    model_names = set(model.state_dict())
    expected = {name for name in model_names if name.startswith("backbone.bottom_up.")}
    expected = expected or {name for name in model_names if name.startswith("backbone.")}
    unexpected = misfits.keys() - model_names
    return len(expected & misfits.keys()) > len(expected) / 4 or len(unexpected) > len(names) / 4


def _misfit_error(filename: str, misfits: list[str]) -> InputError:
    shown = [f"    {text}" for text in misfits[:NAMES_SHOWN]]
    if len(misfits) > NAMES_SHOWN:
        shown.append(f"    … and {len(misfits) - NAMES_SHOWN} more")
    head = f"{filename} is a checkpoint of another architecture than this config builds; what does not fit:"
    return InputError("\n".join([head, *shown]))
