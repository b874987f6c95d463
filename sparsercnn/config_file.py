"""`load_config`: from a YAML file and KEY VALUE options to the config of any detector here."""

import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg

from .architectures import config_defaults, package_errors
from .config import add_keys, set_defaults
from .config_text import check_config_text
from .data import register_config_datasets
from .errors import InputError, did_you_mean, one_line

# Keys that files written for earlier versions may name.
RENAMED_KEYS = {f"MODEL.{name}": "SOLVER.FAST" for name in ("CHANNELS_LAST", "FOLD_FROZEN_BN", "CPU_KERNELS")}
# Where None has a meaning although it is not detectron2's default: norms decay as all other parameters do.
MAY_BE_NONE = {"SOLVER.WEIGHT_DECAY_NORM"}
# Characters of a value in a message.
LONGEST_VALUE = 200
REMOVED_KEYS = ("INPUT.REDUCED_JPEG_DECODE", "SOLVER.COMPILE", "TEST.WINOGRAD", "TEST.ON_DEMAND")


def load_config(file: str | os.PathLike | None = None, options: Sequence = ()) -> CfgNode:
    """The config of any detector here: detectron2's defaults, those of this project, a file, and then options.

    Keys that several detectors read have the defaults of `MODEL.META_ARCHITECTURE`: `SOLVER.OPTIMIZER` is AdamW for
    Sparse R-CNN and detectron2's SGD for Faster R-CNN. Without file and options it is Sparse R-CNN. With EfficientDet,
    what `MODEL.EFFICIENTDET.PHI` stands for are defaults too.

    Data sets that the config names in `DATASETS.COCO_JSON` are registered. Where `MODEL.DEVICE` asks for a GPU and
    there is none it becomes "cpu", with one log line.

    Args:
        file: a YAML file, which may name its parent as `_BASE_`; None or "" for the defaults alone. Code in it is not
            run, so that it may be a stranger's. The files that come with an installed package are found by their path
            in the repository, such as "configs/quickstart.yaml".
        options: keys and values in turn, as on a command line: `["SOLVER.MAX_ITER", "100"]`. They have the last word.

    Raises:
        InputError: a file is missing or malformed, a key unknown, or a value of the wrong type; or see
            `register_config_datasets`.
    """
    path = find_config(file) if file else None
    if path:
        check_config_text(path)
    cfg = _defaults()
    _check_pairs(cfg, options)
    _merge_all(cfg, path, options)
    _check_nothing_is_missing(cfg, _defaults())
    # The defaults follow from what was given, which then is merged into them once more.
    with package_errors():
        defaults = config_defaults(cfg)
    cfg = _defaults()
    set_defaults(cfg, defaults)
    with _no_warnings():
        _merge_all(cfg, path, options)
    register_config_datasets(cfg)
    _choose_device(cfg)
    return cfg


def _defaults() -> CfgNode:
    # Late: here and in `package_errors` the packages meet; all else in this one works without the others.
    from efficientdet import add_efficientdet_config
    from necks import add_neck_config

    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "SparseRCNN"
    add_keys(cfg)
    add_neck_config(cfg)
    add_efficientdet_config(cfg)
    for old, new in RENAMED_KEYS.items():
        cfg.register_renamed_key(old, new)
    for key in REMOVED_KEYS:
        cfg.register_deprecated_key(key)
    return cfg


def _merge_all(cfg: CfgNode, path: str | None, options: Sequence) -> None:
    if path:
        _merge(cfg, lambda: cfg.merge_from_file(path, allow_unsafe=False), f"in {path}")
    _merge(cfg, lambda: cfg.merge_from_list(list(options)), "among the options")


@contextmanager
def _no_warnings() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def find_config(file: str | os.PathLike) -> str:
    """Path of a config file, which may be one that comes with the installed package: "configs/quickstart.yaml".

    Raises:
        InputError: there is no such file.
    """
    installed = Path(__file__).parent / file
    path = str(file if os.path.isfile(file) or not installed.is_file() else installed)
    if not os.path.isfile(path):
        raise InputError(f"config file {path} does not exist")
    return path


def _check_pairs(cfg: CfgNode, options: Sequence) -> None:
    flags = [key for key in options[::2] if str(key).startswith("-")]
    if flags:
        raise InputError(f"{flags[0]} must stand before the KEY VALUE options")
    if len(options) % 2:
        words = " ".join(map(str, options))
        raise InputError(f"options are KEY VALUE pairs, but there are {len(options)} words: {words}")
    for key in map(str, options[::2]):
        if not (cfg.key_is_renamed(key) or cfg.key_is_deprecated(key) or key in _keys(cfg)):
            raise _unknown_key(cfg, key, "among the options")


def _unknown_key(cfg: CfgNode, key: str, where: str) -> InputError:
    return InputError(f"unknown config key {one_line(key)} {where}{did_you_mean(key, _keys(cfg))}")


def _merge(cfg: CfgNode, merge: Callable[[], None], where: str) -> None:
    """Call `merge`, which changes `cfg`, and say in one line what is wrong with what it reads `where`."""
    try:
        merge()
    except (RecursionError, MemoryError) as error:  # of the parser of Python literals
        raise InputError(f"the config {where} has a value that is nested too deeply") from error
    except (TypeError, AttributeError, KeyError, ValueError, AssertionError) as error:
        raise _explain(cfg, str(error), where) from error


def _explain(cfg: CfgNode, message: str, where: str) -> InputError:
    unknown = re.search(r"Non-existent (?:config )?key: ([^\s']+)", message)
    if unknown:
        return _unknown_key(cfg, unknown[1], where)
    renamed = re.search(r"Key (\S+) was renamed to (\S+);", message)
    if renamed:
        return InputError(f"config key {renamed[1]} {where} is now {renamed[2]}")
    pattern = r"Type mismatch \(<class '(.+)'> vs\. <class '(.+)'>\) with values \(.* vs\. (.*)\) for config key: (\S+)"
    mismatch = re.search(pattern, message, re.DOTALL)
    if mismatch:
        expected, given, value, key = mismatch.groups()
        value = one_line(value)[:LONGEST_VALUE]
        return InputError(f"config key {key} {where} must be of type {expected}, not {given}: {value}")
    problem = one_line(" ".join(message.split()))[:LONGEST_VALUE]
    return InputError(f"the config {where} cannot be read: {problem}")


def _check_nothing_is_missing(cfg: CfgNode, defaults: CfgNode, prefix: str = "") -> None:
    """yacs takes None for any value, as which YAML reads a key with nothing behind it."""
    for name, default in defaults.items():
        if isinstance(default, CfgNode) and isinstance(cfg.get(name), CfgNode):
            _check_nothing_is_missing(cfg[name], default, f"{prefix}{name}.")
        elif default is not None and cfg.get(name, default) is None and prefix + name not in MAY_BE_NONE:
            raise InputError(f"config key {prefix}{name} has no value; leave it out for the default, {default!r}")


def _keys(cfg: CfgNode, prefix: str = "") -> Iterable[str]:
    for name, value in cfg.items():
        yield f"{prefix}{name}"
        if isinstance(value, CfgNode):
            yield from _keys(value, f"{prefix}{name}.")


def _choose_device(cfg: CfgNode) -> None:
    name = cfg.MODEL.DEVICE
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"MODEL.DEVICE is {name!r}; choose cpu, cuda, cuda:1 or another device of torch") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        logging.getLogger(__name__).warning(f"No GPU found: MODEL.DEVICE {name} becomes cpu.")
        cfg.MODEL.DEVICE = "cpu"
        return
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # which of them depends on the kind of device
        problem = one_line(str(error).partition("\n")[0])
        raise InputError(f"MODEL.DEVICE is {name!r}, which cannot be used here: {problem}") from error


def leaves(node: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Keys, such as SOLVER.BASE_LR, and values of a config, or of what a YAML file holds of one.

    Args:
        node: of which values may be nodes again.
        prefix: put before every key.
    """
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
