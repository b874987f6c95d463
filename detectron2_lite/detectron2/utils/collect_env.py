"""Versions and hardware in one table, for bug reports. Run `python -m detectron2.utils.collect_env` to see it."""

import importlib.metadata
import os
import sys

import torch
from tabulate import tabulate

__all__ = ["collect_env_info"]

_PACKAGES = ("torchvision", "numpy", "pillow", "fvcore", "iopath", "pycocotools", "opencv-python-headless")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def collect_env_info() -> str:
    """A table of Python, detectron2, torch, GPUs and the packages they need."""
    import detectron2

    rows = [
        ("sys.platform", sys.platform),
        ("Python", sys.version.replace("\n", "")),
        ("detectron2", f"{detectron2.__version__} @{os.path.dirname(detectron2.__file__)}"),
        ("PyTorch", f"{torch.__version__} @{os.path.dirname(torch.__file__)}"),
        ("PyTorch debug build", torch.version.debug),
        ("GPU available", "Yes" if torch.cuda.is_available() else "No"),
    ]
    rows += [(f"GPU {i}", torch.cuda.get_device_name(i)) for i in range(torch.cuda.device_count())]
    rows += [("CUDA of PyTorch", torch.version.cuda or "none"), ("CPU threads", torch.get_num_threads())]
    rows += [(package, _version(package)) for package in _PACKAGES]
    return tabulate(rows) + "\n" + torch.__config__.show()


if __name__ == "__main__":
    print(collect_env_info())
