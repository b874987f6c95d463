"""Process-wide set-up: seeds and optional user code that runs on import."""

import importlib
import importlib.util
import logging
import os
import random
import sys
from datetime import datetime
from types import ModuleType

import numpy as np
import torch

__all__ = ["seed_all_rng", "setup_environment"]

TORCH_VERSION = tuple(int(x) for x in torch.__version__.split(".")[:2])
"""(major, minor) of torch."""


def seed_all_rng(seed: int | None = None) -> None:
    """Seed numpy, torch and `random` of this process; without a seed, with one made of time, process and chance."""
    if seed is None:
        seed = os.getpid() + int(datetime.now().strftime("%S%f")) + int.from_bytes(os.urandom(2), "big")
        logging.getLogger(__name__).info(f"Using a generated random seed {seed}")
    np.random.seed(seed)
    torch.manual_seed(seed)
    random.seed(seed)
    os.environ["PYTHONHASHSEED"] = str(seed)


def _import_file(module_name: str, file_path: str, make_importable: bool = False) -> ModuleType:
    """Run a Python file as a module."""
    spec = importlib.util.spec_from_file_location(module_name, file_path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if make_importable:
        sys.modules[module_name] = module
    return module


_ENV_SETUP_DONE = False


def setup_environment() -> None:
    """Run the user's own set-up code once, when detectron2 is imported.

    The environment variable `DETECTRON2_ENV_MODULE` names a module or .py file with a function `setup_environment()`.
    """
    global _ENV_SETUP_DONE
    if _ENV_SETUP_DONE:
        return
    _ENV_SETUP_DONE = True
    custom = os.environ.get("DETECTRON2_ENV_MODULE")
    if custom:
        setup_custom_environment(custom)


def setup_custom_environment(custom_module: str) -> None:
    """Import a module by name or file and call its `setup_environment()`."""
    if custom_module.endswith(".py"):
        module = _import_file("detectron2.utils.env.custom_module", custom_module)
    else:
        module = importlib.import_module(custom_module)
    assert callable(getattr(module, "setup_environment", None)), (
        f"Custom environment module defined in {custom_module} does not have the required callable attribute "
        "'setup_environment'."
    )
    module.setup_environment()
