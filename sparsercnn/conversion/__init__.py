"""Weights of other code bases under the names of this one and back: functions from state dict to state dict."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .effdet import from_effdet
from .mmdet import from_mmdet, to_mmdet
from .resnet import from_detectron2, from_torchvision, is_caffe2, resnet_part, to_detectron2, to_torchvision

State = Mapping[str, Tensor]
Converter = Callable[[State, State], dict[str, Tensor]]
"""Makes of a foreign state dict, and of that of the model to fill, the latter or a part of it with the foreign values.

It raises an `InputError` where the two do not belong together. What it returns is checked by its caller.
"""

IMAGENET_RGB = {
    "INPUT.FORMAT": "RGB",
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
}
STRIDE_IN_3X3 = {"MODEL.RESNETS.STRIDE_IN_1X1": False}
CAFFE2 = {
    "INPUT.FORMAT": "BGR",
    "MODEL.PIXEL_MEAN": [103.53, 116.28, 123.675],
    "MODEL.PIXEL_STD": [1.0, 1.0, 1.0],
    "MODEL.RESNETS.STRIDE_IN_1X1": True,
}


@dataclass(frozen=True)
class Source:
    """Where weights come from.

    Attributes:
        convert: see `Converter`.
        part: the tensors of the model to fill that `convert` returns; by default all.
        settings: config keys, and the values with which the weights were trained.
    """

    convert: Converter
    part: Callable[[State], State] = field(default=lambda ours: ours)
    settings: Callable[[State], dict[str, Any]] = field(default=lambda theirs: {})


def _settings_of_zoo(theirs: State) -> dict[str, Any]:
    return CAFFE2 if is_caffe2(theirs) else IMAGENET_RGB | STRIDE_IN_3X3


_TORCHVISION = Source(from_torchvision, resnet_part, lambda theirs: IMAGENET_RGB | STRIDE_IN_3X3)
SOURCES = {
    "effdet": Source(from_effdet),
    "torchvision": _TORCHVISION,
    "timm": _TORCHVISION,
    "detectron2": Source(from_detectron2, resnet_part, _settings_of_zoo),
    "mmdet": Source(from_mmdet, settings=lambda theirs: IMAGENET_RGB | STRIDE_IN_3X3),
}
"""What can be read."""

TARGETS: dict[str, Callable[[State], dict[str, Tensor]]] = {
    "sparsercnn": dict,
    "torchvision": to_torchvision,
    "timm": to_torchvision,
    "detectron2": to_detectron2,
    "mmdet": to_mmdet,
}
"""What the weights of a model here can be written as; "sparsercnn" leaves the names as they are."""
