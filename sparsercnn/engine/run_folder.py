"""The folder of a run: what a run leaves there, so that no run overwrites another or is mixed with it."""

import contextlib
import errno
import fcntl
import shutil
from collections.abc import Iterator
from pathlib import Path

import yaml
from detectron2.config import CfgNode

from ..config_file import leaves
from ..config_text import check_config_text
from ..errors import InputError
from ..files import PARTIAL

LOCK = ".training"
"""File that a training holds a lock on while it runs."""
# Without one of these a folder holds nothing that would be missed.
SIGNS = ("last_checkpoint", "metrics.json", "model_*.pth")
"""Files that a training has left."""
LEFT = (
    *SIGNS,
    f"*{PARTIAL}",
    "config.yaml",
    "log.txt*",
    "events.out.tfevents.*",
    "not_finite_*.pth",
    "inference",
    "inference_TTA",
    "inference_stage*",
)
"""All that training leaves; the first is what a resume looks for, so that it goes first."""


def check_run_folder(cfg: CfgNode, resume: bool, overwrite: bool) -> None:
    """Check that a training may start in `OUTPUT_DIR`.

    Args:
        cfg: the config.
        resume: it continues the run that is there, if one is.
        overwrite: it may replace the run that is there.

    Raises:
        InputError: the folder holds a run that the training would overwrite, or one that it needs and would remove.
    """
    if resume and overwrite:
        raise InputError("--resume continues a run and --overwrite removes it: choose one")
    folder = Path(cfg.OUTPUT_DIR)
    if resume or not any(_matches(folder, SIGNS)):
        return
    if not overwrite:
        raise InputError(
            f"OUTPUT_DIR {folder} holds a run: continue it with --resume, replace it with --overwrite, or choose "
            "another OUTPUT_DIR"
        )
    weights = Path(cfg.MODEL.WEIGHTS)
    if cfg.MODEL.WEIGHTS and any(weights.resolve().is_relative_to(path.resolve()) for path in _matches(folder, LEFT)):
        raise InputError(f"MODEL.WEIGHTS {weights} is of the run that --overwrite removes; choose another OUTPUT_DIR")


def remove_run(folder: str) -> None:
    """Remove what a training has left in a folder, and nothing else.

    Raises:
        InputError: something cannot be removed.
    """
    for path in _matches(Path(folder), LEFT):
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise InputError(f"--overwrite: cannot remove {path}: {error.strerror}") from error


@contextlib.contextmanager
def only_training(folder: str) -> Iterator[None]:
    """Inside, no other training may start in a folder; however this process ends, one may again.

    Raises:
        InputError: another one is running there.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    with open(Path(folder) / LOCK, "a") as file:
        try:
            # Of POSIX, which loading processes do not inherit: one that is left over keeps no folder.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise InputError(
                    f"OUTPUT_DIR {folder}: another training is running there; wait for its end, or choose another"
                ) from error
            # A file system without locks.
        yield


def _matches(folder: Path, patterns: tuple[str, ...]) -> Iterator[Path]:
    for pattern in patterns:
        yield from sorted(folder.glob(pattern))


def changed_settings(cfg: CfgNode) -> list[str]:
    """What differs between a config and the one that the run in `OUTPUT_DIR` last had: "KEY: old → new" each."""
    try:
        file = Path(cfg.OUTPUT_DIR) / "config.yaml"
        if file.is_file():
            check_config_text(str(file))
        before = yaml.safe_load(file.read_text())
        after = yaml.safe_load(cfg.dump())
        then, now = dict(leaves(before)), dict(leaves(after))
    except FileNotFoundError:
        return []
    except (OSError, ValueError, AttributeError, RecursionError, yaml.YAMLError) as error:
        return [f"unknown, because config.yaml of the run cannot be read ({type(error).__name__})"]
    keys = sorted(key for key in then.keys() | now.keys() if then.get(key) != now.get(key))
    return [f"{key}: {then.get(key, 'unset')} → {now.get(key, 'unset')}" for key in keys]
