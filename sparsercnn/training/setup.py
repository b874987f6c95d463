"""Reading and checking a config before training starts, so that a mistake costs a second and gets one clear line."""

import difflib
import logging
import os
import re
from collections.abc import Iterable

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY
from fvcore.common.registry import Registry

from ..data import check_datasets, register_config_datasets
from ..errors import InputError
from ..inference import inference_precision


def merge_config(cfg: CfgNode, config_file: str, options: list[str]) -> None:
    """Merge a YAML file (none if empty) and then KEY VALUE pairs into `cfg`, in place; register data sets they add.

    Raises:
        InputError: a file is missing or malformed, a key unknown, or a value of the wrong type.
    """
    if config_file:
        if not os.path.isfile(config_file):
            raise InputError(f"config file {config_file} does not exist")
        _merge(cfg, lambda: cfg.merge_from_file(config_file, allow_unsafe=False), f"in {config_file}")
    if len(options) % 2:
        raise InputError(f"options are KEY VALUE pairs, but there are {len(options)} words: {' '.join(options)}")
    _merge(cfg, lambda: cfg.merge_from_list(options), "on the command line")
    register_config_datasets(cfg)


def _merge(cfg: CfgNode, merge, where: str) -> None:
    try:
        merge()
    except FileNotFoundError as error:
        raise InputError(f"{error.filename}, a _BASE_ {where}, does not exist") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"malformed YAML {where}{line}: {getattr(error, 'problem', error)}") from error
    except (KeyError, ValueError, AssertionError, TypeError, AttributeError) as error:
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
    return f"the config {where} cannot be read: {message}"


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


def check_config(cfg: CfgNode, resume: bool = False, eval_only: bool = False) -> None:
    """Check that everything the config names exists: components, weights, data sets.

    Args:
        resume: there must be a checkpoint in `OUTPUT_DIR`; `MODEL.WEIGHTS` does not matter then.
        eval_only: the training data need not be there.

    Raises:
        InputError: the first that does not.
    """
    inference_precision(cfg)
    _check_registered("MODEL.META_ARCHITECTURE", cfg.MODEL.META_ARCHITECTURE, META_ARCH_REGISTRY)
    _check_registered("MODEL.BACKBONE.NAME", cfg.MODEL.BACKBONE.NAME, BACKBONE_REGISTRY)
    if resume and not os.path.isfile(os.path.join(cfg.OUTPUT_DIR, "last_checkpoint")):
        raise InputError(f"--resume: there is no checkpoint in OUTPUT_DIR {cfg.OUTPUT_DIR} to resume from")
    weights = cfg.MODEL.WEIGHTS
    is_local = "://" not in weights
    if not resume and weights and is_local and not os.path.isfile(weights.partition("?")[0]):
        raise InputError(f"MODEL.WEIGHTS: there is no file {weights}")
    check_datasets(cfg, train=not eval_only)


def _check_registered(key: str, name: str, registry: Registry) -> None:
    if name not in registry:
        names = sorted(known for known, _ in registry)
        raise InputError(f"{key}: there is no {name!r}{_did_you_mean(name, names)} (registered: {', '.join(names)})")
