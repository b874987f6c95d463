"""Checkpoints that appear whole or not at all, read without running code, and refused when they do not fit."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from torch import nn

from ...errors import InputError
from ...files import PARTIAL, CannotWriteError, write_whole
from ..ema import CHECKPOINT_KEY, use_average
from .archive import write_archive
from .content import as_checkpoint
from .files import UnusableFileError, read_tensors
from .fine_tuning import MAY_DIFFER, fit_to_model, part_of, table
from .metadata import METADATA
from .optimizer_state import checked_training_state, from_old_layout

NAMES_SHOWN = 10
CLASS_LAYER = "class_logits"
# Of the names in what follows the backbone of a detector; an ImageNet model has none.
HEADS = ("head.", "roi_heads.", "proposal_generator.")
PIXEL_STATISTICS = ("pixel_mean", "pixel_std")
TAG = "last_checkpoint"
# Letters read of a tag, which is the name of a file.
TAG_LENGTH = 255
PERIODIC = re.compile(r"model_(\d+)\.pth")


class SparseRCNNCheckpointer(DetectionCheckpointer):
    """detectron2's checkpointer, for files that may come from strangers and for runs that may be killed.

    * A file is read once and by `read_tensors`, which runs no code; what it reads is checked by checksums.
    * Of a training that averages its weights the average is loaded, unless the training goes on.
    * A checkpoint appears under its name only when it is complete; so does the `last_checkpoint` tag. A run resumes
      from the newest one that is whole.
    * Loading a checkpoint of another architecture is an `InputError` that lists what does not fit. The weights that a
      training starts from may differ in classes, number of proposals and neck (see `fit_to_model`): a table in the log
      says what was loaded. Elsewhere class layers of another size keep their initialization, with detectron2's warning.
      A backbone alone (an ImageNet model) may have layers that this backbone lacks and the other way round, up to a
      quarter of them.

    Args:
        model: the model; a data-parallel wrapper is taken off.
        save_dir: folder to save to and to resume from.
        kept: periodic checkpoints (`model_0001999.pth`) that a save leaves, itself included; 0 for all. Others are
            never deleted.
        metadata: plain values to store in each checkpoint, see `run_metadata`.
        checkpointables: further objects with `state_dict` and `load_state_dict`, such as trainer=...

    Attributes:
        source: path of the file that was loaded last.
        names_in_file: names of the tensors of its model, in the file's order.
    """

    source = ""
    names_in_file: Sequence[str] = ()

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        kept: int = 0,
        metadata: dict[str, Any] | None = None,
        **checkpointables: Any,
    ):
        super().__init__(model, save_dir, **checkpointables)
        self.kept = kept
        self.metadata = metadata
        self._fits = False

    def save(self, name: str, **kwargs: Any) -> None:
        """Write the model, all checkpointables and `kwargs` to NAME.pth in the folder of this checkpointer.

        Raises:
            CannotWriteError: the file could not be written. The checkpoints before it are as they were.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        content = {"model": self.model.state_dict()}
        content |= {key: item.state_dict() for key, item in self.checkpointables.items()}
        content |= kwargs
        if self.metadata is not None:
            content[METADATA] = self.metadata
        target = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info(f"Saving checkpoint to {target}")
        try:
            write_whole(target, lambda file: write_archive(content, file))
            self.tag_last_checkpoint(f"{name}.pth")
        except CannotWriteError as error:
            last = self.get_checkpoint_file()
            hint = f"{last} is whole: make room and continue from it with --resume" if last else "make room"
            raise CannotWriteError(f"{error}; {hint}") from error
        if self.kept:
            self._delete_older(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Make the file of this name in the folder the one that `resume_or_load` resumes from."""
        write_whole(os.path.join(self.save_dir, TAG), lambda file: file.write(last_filename_basename.encode()))

    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint in the folder to resume from."""
        return bool(resumable_checkpoints(self.save_dir))

    def get_checkpoint_file(self) -> str:
        """Path of the checkpoint in the folder to resume from, "" if there is none."""
        return next(iter(resumable_checkpoints(self.save_dir)), "")

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Load all from the newest whole checkpoint in the folder or, without any there, the model from `path`.

        Partial files of a run that was killed while it wrote them are removed if this checkpointer has a training's
        state to save.

        Args:
            path: path or URL of weights.
            resume: False to load the model from `path` anyway.

        Raises:
            InputError: see `load`; or there are checkpoints, but none is whole; or processes found different ones.
        """
        if self.checkpointables and self.save_to_disk and self.save_dir:
            for partial in Path(self.save_dir).glob(f"*{PARTIAL}"):
                partial.unlink(missing_ok=True)
        if not resume:
            return self._start(path)
        error = None
        try:
            checkpoint = self._resume() if self.has_checkpoint() else self._start(path)
        except InputError as found:  # not raised yet: the other processes are waiting below
            error = found
        sources = comm.all_gather("" if error else os.path.basename(self.source))
        if error:
            raise error
        if len(set(sources)) > 1:
            found_each = ", ".join(source or "none" for source in sources)
            raise InputError(f"processes do not find the same checkpoint in {self.save_dir}, but {found_each}")
        return checkpoint

    def _start(self, path: str) -> dict[str, Any]:
        """Load the model from weights to start from; a training makes them fit."""
        self._fits = bool(self.checkpointables)
        try:
            return self.load(path, checkpointables=[])
        finally:
            self._fits = False

    def _resume(self) -> dict[str, Any]:
        errors = []
        for file in resumable_checkpoints(self.save_dir):
            try:
                return self.load(file)
            except UnusableFileError as error:
                self.logger.warning(f"{error}. The checkpoint before it is used")
                errors.append(str(error))
        raise InputError(f"no checkpoint in {self.save_dir} can be resumed from: {'; '.join(errors)}")

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load the model, and of `checkpointables` those named (None for all), from a path or URL.

        Raises:
            UnusableFileError: the file cannot be read, is damaged, or holds no model.
            InputError: it does not fit the model or the training, or lacks one of the checkpointables.
        """
        self._wanted = list(self.checkpointables) if checkpointables is None else checkpointables
        try:
            return super().load(path, checkpointables)
        except InputError:
            raise
        except (OSError, AssertionError) as error:  # fvcore asserts that there is a file
            raise UnusableFileError(f"weights {path} cannot be read: {error}") from error
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            # What PyTorch and detectron2 say of plain values that are not those they expect.
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            raise InputError(f"{path} does not fit the model or its training: {reason}") from error
        finally:
            self._parsed_url_during_load = None  # official detectron2 leaves it after an error

    def _load_file(self, filename: str) -> dict[str, Any]:
        queries = parse_qs(self._parsed_url_during_load.query if self._parsed_url_during_load else "")
        match_endings = queries.pop("matching_heuristics", ["False"]) == ["True"]
        if queries:
            raise InputError(f"{filename}: the query may be matching_heuristics=True, not {', '.join(queries)}")
        checkpoint = from_old_layout(as_checkpoint(read_tensors(filename), filename, match_endings))
        if missing := [name for name in self._wanted if name not in checkpoint]:
            raise InputError(
                f"{filename} holds a model, but no state of a training to resume (it lacks {', '.join(missing)}); "
                "start from it with MODEL.WEIGHTS"
            )
        if "trainer" in self._wanted:
            try:
                checkpoint["trainer"] = checked_training_state(checkpoint["trainer"])
            except ValueError as error:
                raise UnusableFileError(f"{filename} cannot be resumed: {error}") from error
        self.source = filename
        self.names_in_file = tuple(checkpoint["model"])
        if CHECKPOINT_KEY not in self._wanted:
            use_average(checkpoint)
        return checkpoint

    def _load_model(self, checkpoint: dict) -> Any:
        if self._fits and any(name.startswith(HEADS) for name in checkpoint["model"]):
            return self._fit(checkpoint)
        names = set(checkpoint["model"])
        incompatible = super()._load_model(checkpoint)
        misfits = _misfits(incompatible)
        heads = {name for name in self.model.state_dict() if name.startswith("head.")}
        if names & heads:  # not a backbone alone
            refused = bool(misfits)
        else:
            misfits = {name: text for name, text in misfits.items() if name.startswith("backbone.") or name in names}
            refused = incompatible.incorrect_shapes or _over_a_quarter_differs(self.model, names, misfits)
        if refused:
            raise _misfit_error(self.source, list(misfits.values()))
        return incompatible

    def _fit(self, checkpoint: dict) -> Any:
        """Load a detector's weights that may differ from the model in some parts."""
        state = self.model.state_dict()
        classes = (checkpoint.get(METADATA) or {}).get("class_names"), (self.metadata or {}).get("class_names")
        fit = fit_to_model(checkpoint["model"], state, *classes)
        checkpoint["model"] = dict(fit.weights)
        misfits = _misfits(super()._load_model(checkpoint))
        if wrong := [text for name, text in misfits.items() if part_of(name) not in MAY_DIFFER]:
            raise _misfit_error(self.source, wrong)
        self.logger.info(f"Weights to start from, {self.source}:\n{table(fit, state)}")
        return None  # the table says what detectron2 would

    def _delete_older(self, name: str) -> None:
        """Delete periodic checkpoints before this one, but for the newest of them."""
        newest = PERIODIC.fullmatch(name)
        if newest is None:
            return
        numbers = {path: int(match[1]) for path in _files(self.save_dir) if (match := PERIODIC.fullmatch(path.name))}
        # Later ones are of a run that came further before it was resumed from here.
        older = sorted((path for path in numbers if numbers[path] < int(newest[1])), key=numbers.__getitem__)
        for path in older[: max(0, len(older) + 1 - self.kept)]:
            path.unlink(missing_ok=True)


def resumable_checkpoints(folder: str) -> list[str]:
    """Paths of the checkpoints in a folder to try to resume from, best first.

    That is the one that the tag `last_checkpoint` names, if it is there, and `model_*.pth` from the newest on: by the
    iteration in their names; those without one, such as `model_final.pth`, come before the newest that was written
    before them.
    """
    files = [path for path in _files(folder) if path.match("model_*.pth")]
    numbers = {path: int(match[1]) for path in files if (match := PERIODIC.fullmatch(path.name))}

    def age(path: Path) -> tuple[float, int]:
        written = path.stat().st_mtime_ns
        before = [number for other, number in numbers.items() if other.stat().st_mtime_ns <= written]
        return numbers.get(path, max(before, default=-1) + 0.5), written

    tagged = _tagged(folder)
    newest_first = sorted(files, key=age, reverse=True)
    return [str(path) for path in [*tagged, *(path for path in newest_first if path not in tagged)]]


def _tagged(folder: str) -> list[Path]:
    """The file in the folder that the tag names; empty if the tag is missing or names none."""
    try:
        with open(os.path.join(folder, TAG), encoding="utf-8") as file:
            name = file.read(TAG_LENGTH).strip()
    except (OSError, ValueError):
        return []
    return [path for path in _files(folder) if path.name == name and name.endswith(".pth")]


def _files(folder: str) -> list[Path]:
    if not folder or not os.path.isdir(folder):
        return []
    return [path for path in Path(folder).iterdir() if path.is_file()]


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
