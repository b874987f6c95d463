"""ResNets that have seen ImageNet, from torchvision, timm and detectron2's model zoo, for detectron2's ResNet.

torchvision and timm give their tensors the same names. Both put the stride of a bottleneck into its 3×3 convolution and
expect RGB normalized by ImageNet's mean and standard deviation. detectron2's zoo has such files too, under its own
names, and older ones from Caffe2: stride in the first 1×1 convolution, BGR, values up to 255.
"""

from collections.abc import Callable, Mapping

import torch
from detectron2.checkpoint.c2_model_loading import convert_basic_c2_names
from torch import Tensor

from ..errors import InputError
from .names import COUNTER, Rule, filled, renamed

STEM = "stem.conv1.weight"
CAFFE2_STEM = "conv1_w"

RESNET_RULES: list[Rule] = [
    (r"stem\.conv1\.norm\.", "bn1."),
    (r"stem\.conv1\.", "conv1."),
    (r"res(\d)\.(\d+)\.conv(\d)\.norm\.", lambda m: f"layer{int(m[1]) - 1}.{m[2]}.bn{m[3]}."),
    (r"res(\d)\.(\d+)\.shortcut\.norm\.", lambda m: f"layer{int(m[1]) - 1}.{m[2]}.downsample.1."),
    (r"res(\d)\.(\d+)\.shortcut\.", lambda m: f"layer{int(m[1]) - 1}.{m[2]}.downsample.0."),
    (r"res(\d)\.(\d+)\.", lambda m: f"layer{int(m[1]) - 1}.{m[2]}."),
]
"""From the names in detectron2's ResNet to those in torchvision's, timm's and MMDetection's."""


def resnet_part(ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those tensors of a detector that are detectron2's ResNet, under the detector's names.

    Raises:
        InputError: it has none.
    """
    prefix = _prefix(ours)
    return {name: x for name, x in ours.items() if name.startswith((f"{prefix}stem.", f"{prefix}res"))}


def from_torchvision(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the tensors of torchvision's or timm's ResNet (18, 34, 50, 101, 152) the names they have in a detector.

    The classifier is left out, and so are stages that the detector has not.

    Args:
        theirs: state dict of torchvision's `resnet50()` and the like, or of timm's models of the same names.
        ours: state dict of the detector to fill.

    Returns:
        The detector's ResNet alone.

    Raises:
        InputError: the detector has no ResNet, or `theirs` is of another network.
    """
    return _filled(theirs, ours, lambda name: renamed(name, RESNET_RULES))


def to_torchvision(ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the ResNet of a detector the names that torchvision and timm use. There is no classifier in it.

    Raises:
        InputError: the detector has no ResNet.
    """
    prefix = _prefix(ours)
    return {renamed(name.removeprefix(prefix), RESNET_RULES): x for name, x in resnet_part(ours).items()}


def from_detectron2(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give an ImageNet model of detectron2's zoo (R-50.pkl and the like) the names that it has in a detector.

    Norms of Caffe2's models, which hold a scale and a bias alone, get the statistics that detectron2 gives them.

    Args:
        theirs: tensors under detectron2's names ("res2.0.conv1.weight") or Caffe2's ("res2_0_branch2a_w").
        ours: state dict of the detector to fill.

    Returns:
        The detector's ResNet alone.

    Raises:
        InputError: the detector has no ResNet, or `theirs` is of another network.
    """
    if is_caffe2(theirs):
        theirs = dict(zip(convert_basic_c2_names(list(theirs)), theirs.values(), strict=True))
        for name in [name for name in theirs if name.endswith("norm.weight")]:
            norm = name.removesuffix("weight")
            theirs.setdefault(f"{norm}running_mean", torch.zeros_like(theirs[name]))
            # Of which the norm takes the root after it added 1e-5.
            theirs.setdefault(f"{norm}running_var", torch.ones_like(theirs[name]) - 1e-5)
    return _filled(theirs, ours, lambda name: name)


def to_detectron2(ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the ResNet of a detector the names that it has in detectron2's zoo, from where any backbone loads it.

    Raises:
        InputError: the detector has no ResNet.
    """
    prefix = _prefix(ours)
    return {name.removeprefix(prefix): x for name, x in resnet_part(ours).items()}


def is_caffe2(theirs: Mapping[str, Tensor]) -> bool:
    """Whether the weights are under Caffe2's names, and so for BGR and a stride in the first 1×1 convolution."""
    return CAFFE2_STEM in theirs


def _filled(
    theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor], their_name: Callable[[str], str]
) -> dict[str, Tensor]:
    prefix = _prefix(ours)
    used = {name: their_name(name.removeprefix(prefix)) for name in resnet_part(ours)}
    state = filled(theirs, used, used.__getitem__)
    # A deeper network has every name of a shallower one of its kind.
    stages = {name.split(".")[0] for name in used.values()}
    known = set(used.values())
    for name in theirs:
        if name.split(".")[0] in stages and name not in known and not name.endswith(COUNTER):
            raise InputError(f"these weights have {name}, which the model has not; see MODEL.RESNETS.DEPTH")
    return state


def _prefix(ours: Mapping[str, Tensor]) -> str:
    """What stands before "stem.conv1.weight" in the detector."""
    for name in ours:
        if name.endswith(f".{STEM}"):
            return name.removesuffix(STEM)
    raise InputError("the backbone of this model is not detectron2's ResNet, which these weights are for")
