"""The model that a config describes, built by detectron2, with one exception for whatever is wrong in the config."""

from detectron2.config import CfgNode
from detectron2.modeling import build_model as build_registered_model
from torch import nn

from ..errors import InputError


def build_model(cfg: CfgNode) -> nn.Module:
    """Build the meta-architecture `MODEL.META_ARCHITECTURE` with random weights, on `MODEL.DEVICE`.

    Raises:
        InputError: a part of the model cannot be built as the config says.
    """
    # Late: this function and `load_config` are where the packages meet; all else here works without `necks`.
    from necks import NeckConfigError

    try:
        return build_registered_model(cfg)
    except NeckConfigError as error:  # of a package that does not know `InputError`
        raise InputError(str(error)) from error
