"""Reading and checking a config before training starts, so that a mistake costs a second and gets one clear line."""

import difflib
import logging
import os
import re
import tempfile
from collections.abc import Iterable
from operator import attrgetter

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY
from fvcore.common.registry import Registry

from ..data import check_datasets, register_config_datasets
from ..errors import InputError
from ..fast.inference import check_inference

SMALLEST_VALUES = {
    "SOLVER.MAX_ITER": 1,
    "SOLVER.IMS_PER_BATCH": 1,
    "SOLVER.ACCUMULATE": 1,
    "SOLVER.CHECKPOINT_PERIOD": 1,
    "DATALOADER.NUM_WORKERS": 0,
    "TEST.EVAL_PERIOD": 0,
    "MODEL.SparseRCNN.NUM_CLASSES": 1,
    "MODEL.SparseRCNN.NUM_PROPOSALS": 1,
    "MODEL.SparseRCNN.NHEADS": 1,
    "MODEL.SparseRCNN.NUM_HEADS": 1,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 1,
    "MODEL.ROI_ROUTING.CANONICAL_BOX_SIZE": 1,
}


def merge_config(cfg: CfgNode, config_file: str, options: list[str]) -> None:
    """Merge a YAML file (none if empty) and then KEY VALUE pairs into `cfg`, in place; register data sets they add.

    Raises:
        InputError: a file is missing or malformed, a key unknown, or a value of the wrong type.
    """
    if config_file:
        if not os.path.isfile(config_file):
            raise InputError(f"config file {config_file} does not exist")
        _merge(cfg, lambda: cfg.merge_from_file(config_file, allow_unsafe=False), f"in {config_file}")
    flags = [key for key in options[::2] if key.startswith("-")]
    if flags:
        raise InputError(f"{flags[0]} must stand before the KEY VALUE options")
    if len(options) % 2:
        raise InputError(f"options are KEY VALUE pairs, but there are {len(options)} words: {' '.join(options)}")
    _merge(cfg, lambda: cfg.merge_from_list(options), "on the command line")
    register_config_datasets(cfg)


def _merge(cfg: CfgNode, merge, where: str) -> None:
    try:
        merge()
    except FileNotFoundError as error:
        raise InputError(f"{error.filename}, a _BASE_ {where}, does not exist") from error
    except OSError as error:
        raise InputError(f"the config {where} cannot be read: {error}") from error
    except RecursionError as error:
        raise InputError(f"the _BASE_ {where} leads back to the file itself") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = " ".join(str(getattr(error, "problem", error)).split())
        raise InputError(f"malformed YAML {where}{line}: {problem}") from error
    except (TypeError, AttributeError) as error:
        raise InputError(f"the config {where} must be a mapping of keys to values ({error})") from error
    except (KeyError, ValueError, AssertionError) as error:
        raise InputError(_explain(cfg, str(error), where)) from error


def _explain(cfg: CfgNode, message: str, where: str) -> str:
    unknown = re.search(r"Non-existent (?:config )?key: ([\w.]+)", message)
    if unknown:
        key = unknown[1]
        return f"unknown config key {key} {where}{_did_you_mean(key, _keys(cfg))}"
    pattern = r"Type mismatch \(<class '(.+)'> vs\. <class '(.+)'>\) with values \(.* vs\. (.*)\) for config key: (\S+)"
    mismatch = re.search(pattern, message, re.DOTALL)
    if mismatch:
        expected, given, value, key = mismatch.groups()
        return f"config key {key} {where} must be of type {expected}, not {given}: {value}"
    return f"the config {where} cannot be read: {' '.join(message.split())}"


def _keys(cfg: CfgNode, prefix: str = "") -> Iterable[str]:
    for name, value in cfg.items():
        yield f"{prefix}{name}"
        if isinstance(value, CfgNode):
            yield from _keys(value, f"{prefix}{name}.")


def _did_you_mean(name: str, choices: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(choices), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def choose_device(cfg: CfgNode) -> None:
    """Fall back to the CPU, with one log line, where `MODEL.DEVICE` asks for a GPU that is not there."""
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logging.getLogger(__name__).warning(f"No GPU found: MODEL.DEVICE {cfg.MODEL.DEVICE} becomes cpu.")
        cfg.MODEL.DEVICE = "cpu"


def check_config(cfg: CfgNode, resume: bool = False, eval_only: bool = False, processes: int = 1) -> None:
    """Check that everything the config names exists and its numbers make sense: model, weights, data sets, output.

    Args:
        resume: there must be a checkpoint in `OUTPUT_DIR`; `MODEL.WEIGHTS` does not matter then.
        eval_only: the training data need not be there.
        processes: that share the training batch.

    Raises:
        InputError: the first mistake.
    """
    if resume and not os.path.isfile(os.path.join(cfg.OUTPUT_DIR, "last_checkpoint")):
        raise InputError(f"--resume: there is no checkpoint in OUTPUT_DIR {cfg.OUTPUT_DIR} to resume from")
    check_model(cfg, with_weights=not resume)
    for key, smallest in SMALLEST_VALUES.items():
        if attrgetter(key)(cfg) < smallest:
            raise InputError(f"{key} is {attrgetter(key)(cfg)}; it must be at least {smallest}")
    if not eval_only and cfg.SOLVER.IMS_PER_BATCH % processes:
        raise InputError(
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}, which {processes} processes cannot share equally; "
            f"choose a multiple of {processes}"
        )
    check_datasets(cfg, train=not eval_only)
    _check_writable(cfg.OUTPUT_DIR)


def check_model(cfg: CfgNode, with_weights: bool = True) -> None:
    """Check that the components of the model exist, its weights if `with_weights`, and how it is to run.

    Raises:
        InputError: one does not, or see `check_inference`.
    """
    check_inference(cfg)
    _check_registered("MODEL.META_ARCHITECTURE", cfg.MODEL.META_ARCHITECTURE, META_ARCH_REGISTRY)
    _check_registered("MODEL.BACKBONE.NAME", cfg.MODEL.BACKBONE.NAME, BACKBONE_REGISTRY)
    weights = cfg.MODEL.WEIGHTS
    is_local = "://" not in weights
    if with_weights and weights and is_local and not os.path.isfile(weights.partition("?")[0]):
        raise InputError(f"MODEL.WEIGHTS: there is no file {weights}")


def _check_writable(folder: str) -> None:
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"OUTPUT_DIR {folder!r} is no folder that can be written to: {error.strerror}") from error


def _check_registered(key: str, name: str, registry: Registry) -> None:
    if name not in registry:
        names = sorted(known for known, _ in registry)
        raise InputError(f"{key}: there is no {name!r}{_did_you_mean(name, names)} (registered: {', '.join(names)})")
