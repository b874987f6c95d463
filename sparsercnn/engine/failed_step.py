"""Steps that failed because a number was not finite: skipped or fatal, and kept so that they can be repeated.

`tools/replay_batch.py` is the program for the file that such a step leaves.
"""

import logging
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..config_file import load_config
from ..errors import InputError
from ..files import write_whole
from ..randomness import Purpose, seed_generators
from .build import amp_precision, build_model, prepare_for_training
from .checkpoints.files import read_tensors
from .not_finite import NotFiniteError, all_finite
from .optimizer import build_optimizer
from .step import TrainStep

PREFIX = "not_finite_"
"""Of the names of the files."""
IMAGES_SHOWN = 16
KEYS = {"config", "batches", "model", "seed", "iteration", "loss_scale", "losses", "learning_rate"}


class FailedSteps:
    """Decides what becomes of a step whose losses or gradient are not finite: an error, or a warning and no update.

    Args:
        cfg: the config of the run, for its folder and the number of such steps that it allows, and to repeat the step.

    Attributes:
        skipped: steps of the run so far that were left out.
    """

    def __init__(self, cfg: CfgNode):
        self.cfg = cfg
        self.allowed = cfg.SOLVER.MAX_SKIPPED_STEPS
        self.skipped = 0

    def handle(self, error: NotFiniteError, step: TrainStep) -> None:
        """Keep the step in a file in `OUTPUT_DIR`, and log that it is skipped if the run allows one more.

        Args:
            error: what the step raised, in each process.
            step: whose model has not been updated.

        Raises:
            InputError: no more steps may be skipped, or norms have taken up what is not finite.
        """
        path = os.path.join(self.cfg.OUTPUT_DIR, f"{PREFIX}{step.iter:07d}.pth")
        batches = comm.gather([[_plain(sample) for sample in batch] for batch in error.batches])
        kept = f"python tools/replay_batch.py {path} repeats the step"
        if comm.is_main_process():
            try:
                _save(path, self.cfg, error, step, batches)
            except InputError as cannot:
                kept = f"the step could not be kept: {cannot}"
        names = [_name(sample) for batch in error.batches for sample in batch]
        names = [name for of_process in comm.all_gather(names) for name in of_process]
        shown = ", ".join(names[:IMAGES_SHOWN]) + (", …" if len(names) > IMAGES_SHOWN else "")
        values = ", ".join(f"{name} {value:.4g}" for name, value in error.losses.items())
        rate = step.optimizer.param_groups[0]["lr"]
        values = f" ({values})" if values else ""
        what = (
            f"iteration {step.iter}: {error.what} not finite{values} at learning rate {rate:.5g} on images {shown}; "
            f"{kept}"
        )
        if self.skipped >= self.allowed:
            raise InputError(
                f"{what}. No weights were changed and no checkpoint was written. Continue from the last one with "
                "--resume and a lower SOLVER.BASE_LR, or let SOLVER.MAX_SKIPPED_STEPS such steps be left out"
            )
        if not all_finite(step.model.state_dict().values()):
            raise InputError(f"{what}. It cannot be left out: the running statistics of norms are not finite now")
        self.skipped += 1
        get_event_storage().put_scalar("skipped_steps", self.skipped, smoothing_hint=False)
        logging.getLogger(__name__).warning(f"{what}. Skipped, {self.skipped} of {self.allowed} that may be")


def _name(sample: dict) -> str:
    name = str(sample.get("image_id", "?"))
    return f"{name} ({sample['file_name']})" if "file_name" in sample else name


def _plain(sample: dict) -> dict:
    """A sample without objects that loading a file would have to be trusted for."""
    return {key: _plain_instances(value) if isinstance(value, Instances) else value for key, value in sample.items()}


def _plain_instances(instances: Instances) -> dict:
    fields = instances.get_fields().items()
    tensors = {name: value.tensor if isinstance(value, Boxes) else value for name, value in fields}
    return {"image_size": list(instances.image_size), "fields": tensors}


def _sample(plain: dict) -> dict:
    """What `_plain` was given."""
    return {key: _instances(value) if isinstance(value, dict) else value for key, value in plain.items()}


def _instances(plain: dict) -> Instances:
    height, width = plain["image_size"]
    fields = {name: Boxes(value) if name.endswith("boxes") else value for name, value in plain["fields"].items()}
    return Instances((height, width), **fields)


def _save(path: str, cfg: CfgNode, error: NotFiniteError, step: TrainStep, batches: Sequence) -> None:
    model = step.model.module if isinstance(step.model, DistributedDataParallel) else step.model
    content = {
        "config": cfg.dump(),
        "iteration": step.iter,
        "seed": step.seed,
        "loss_scale": step.grad_scaler.state_dict(),
        "what": error.what,
        "losses": error.losses,
        "learning_rate": step.optimizer.param_groups[0]["lr"],
        "batches": [
            {"rank": rank, "turn": turn, "samples": samples}
            for rank, turns in enumerate(batches)
            for turn, samples in enumerate(turns)
        ],
        "model": model.state_dict(),
    }
    write_whole(path, lambda file: torch.save(content, file))


@dataclass
class Replay:
    """A step that failed, and what it gave when it was repeated.

    Attributes:
        iteration, learning_rate, images: of the step.
        recorded, repeated: losses by name, then and now.
        gradient_norm: of the whole model, now.
        parameters: names of those whose gradient is not finite now.
    """

    iteration: int
    learning_rate: float
    images: list[str]
    recorded: dict[str, float]
    repeated: dict[str, float]
    gradient_norm: float
    parameters: list[str]

    @property
    def is_finite(self) -> bool:
        """Whether all was well this time."""
        return not self.parameters and all_finite(torch.tensor([*self.repeated.values(), self.gradient_norm]).split(1))


def replay(path: Path, options: Sequence[str] = ()) -> Replay:
    """Repeat forward and backward pass of a step that failed. The batches of several processes are taken in turn.

    Args:
        path: the file that it left.
        options: config keys and values in turn that are to differ, such as ["MODEL.DEVICE", "cpu"].

    Raises:
        InputError: the file cannot be read, or was not left by such a step.
    """
    dump = _load(path)
    try:
        return _repeat(dump, options)
    except InputError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise InputError(f"{path} cannot be repeated, or not with these settings: {reason}") from error


def _repeat(dump: dict[str, Any], options: Sequence[str]) -> Replay:
    cfg = _config(dump["config"], options)
    model = build_model(cfg)
    prepare_for_training(cfg, model)
    model.load_state_dict(dump["model"])
    batches = [[_sample(plain) for plain in batch["samples"]] for batch in dump["batches"]]
    step = TrainStep(model, [], build_optimizer(cfg, model), len(batches), amp_precision(cfg))
    if step.grad_scaler.is_enabled() and dump["loss_scale"]:
        step.grad_scaler.load_state_dict(dump["loss_scale"])
    losses: dict[str, float] = {}
    for batch, origin, share in zip(batches, dump["batches"], step.shares(batches), strict=True):
        seed_generators(dump["seed"], Purpose.MODEL, dump["iteration"], origin["turn"], origin["rank"])
        try:
            found = step.forward_backward(batch, share)
        except FloatingPointError:  # the model found it before it had losses
            found = dict.fromkeys(dump["losses"] or ["predictions"], torch.tensor(math.nan))
        for name, loss in found.items():
            losses[name] = losses.get(name, 0.0) + float(loss)
    step.grad_scaler.unscale_(step.optimizer)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    not_finite = [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
    return Replay(
        dump["iteration"],
        dump["learning_rate"],
        [_name(sample) for batch in batches for sample in batch],
        dump["losses"],
        losses,
        float(nn.utils.clip_grad_norm_(model.parameters(), float("inf"))) if gradients else math.nan,
        not_finite,
    )


def _load(path: Path) -> dict[str, Any]:
    dump = read_tensors(str(path))
    if not isinstance(dump, dict) or not dump.keys() >= KEYS:
        raise InputError(f"{path} is not a step that failed; such files are named {PREFIX}ITERATION.pth")
    return dump


def _config(text: str, options: Sequence[str]) -> CfgNode:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(text)
        return load_config(file, options)
