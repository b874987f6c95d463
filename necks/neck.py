"""The contract that every neck keeps.

A neck stands between a bottom-up network and a detector's head. It takes the named feature maps of contiguous levels
and returns a pyramid `{"p2": …, "p3": …}` in which level k has stride 2**k and all levels have equally many channels.
"""

import math
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from detectron2.utils.registry import Registry
from torch import Tensor, nn

from .errors import NeckConfigError, check_at_least

NECK_REGISTRY = Registry("NECK")
NECK_REGISTRY.__doc__ = """
Registry of necks. A registered object is called as `obj(cfg, input_shapes)`, `input_shapes` being the `ShapeSpec` of
each level of `MODEL.NECK.IN_FEATURES`, and returns a `Neck`.
"""


class Neck(nn.Module):
    """Base class of all necks.

    Args:
        input_shapes: channels and stride of each bottom-up level, lowest (finest) level first. Each stride is a power
            of two and twice the one before it.
        out_channels: channels of every output level.
        num_levels: how many levels to return, the lowest being the lowest input. Those above the inputs are made by the
            neck. 0: as many as there are inputs.

    Attributes:
        in_features: names of the levels that `forward` reads, lowest first.
        in_channels: their channels.
        levels: the output levels, for example `range(2, 6)` for p2 to p5.
        names: their names.
        auxiliary_pyramids: see `NeckBackbone`.

    Raises:
        ValueError: levels or numbers that make no pyramid.
    """

    def __init__(self, input_shapes: dict[str, ShapeSpec], out_channels: int, num_levels: int = 0) -> None:
        super().__init__()
        check_at_least("out_channels", out_channels, 1)
        self.in_features = list(input_shapes)
        self.in_channels = [_declared(shape.channels) for shape in input_shapes.values()]
        self.out_channels = out_channels
        self.levels = _output_levels(input_shapes, num_levels)
        self.auxiliary_pyramids: dict[str, float] = {}

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shapes: dict[str, ShapeSpec]) -> dict[str, Any]:
        neck = cfg.MODEL.NECK
        return {"input_shapes": input_shapes, "out_channels": neck.OUT_CHANNELS, "num_levels": neck.NUM_LEVELS}

    @property
    def names(self) -> list[str]:
        return [f"p{level}" for level in self.levels]

    @property
    def num_extra_levels(self) -> int:
        """How many top levels have no input and are made by the neck."""
        return max(len(self.levels) - len(self.in_features), 0)

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {f"p{level}": ShapeSpec(channels=self.out_channels, stride=2**level) for level in self.levels}

    def inputs(self, features: dict[str, Tensor]) -> list[Tensor]:
        """The (B, C, H, W) maps of `in_features`, lowest level first."""
        return [features[name] for name in self.in_features]

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Map bottom-up features, (B, C_in, H, W) each, to `{"p2": (B, out_channels, H, W), …}`, lowest level first."""
        raise NotImplementedError

    def wrap(self, bottom_up: Backbone) -> "NeckBackbone":
        """Join this neck and the network below it into a backbone.

        A neck that does more than read the features once, for example one that runs the bottom-up network again,
        overrides it.
        """
        return NeckBackbone(bottom_up, self)


class NeckBackbone(Backbone):
    """A bottom-up network and the neck on it, as one detectron2 backbone.

    Images may have any size. Their batch is padded to a multiple of the stride of the highest input level, as for
    detectron2's FPN, and of what the bottom-up network asks for.

    Attributes:
        auxiliary_pyramids: what the detector should also learn on in training: the prefix of the names of a further
            pyramid, and the weight of its loss. With `{"lateral_": 0.25}` the result of `forward` holds, in training
            mode only, "lateral_p2" for "p2" and so on. Empty for most necks.
    """

    bottom_up: Backbone
    neck: Neck

    def __init__(self, bottom_up: Backbone, neck: Neck) -> None:
        super().__init__()
        self.bottom_up = bottom_up
        self.neck = neck

    @property
    def auxiliary_pyramids(self) -> dict[str, float]:
        return self.neck.auxiliary_pyramids

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map images (B, 3, H, W) to the neck's pyramid.

        Raises:
            NeckConfigError: batch norm in training meets a level of a single pixel in a batch of a single image.
        """
        try:
            return self.pyramid(images)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise NeckConfigError(
                f"batch norm cannot learn from one value: of {tuple(images.shape)} images a level has one pixel; "
                "train with more images per device, larger images or fewer levels, or choose another norm"
            ) from error

    def pyramid(self, images: Tensor) -> dict[str, Tensor]:
        """What `forward` returns. Subclasses override this one."""
        return self.neck(self.bottom_up(images))

    def output_shape(self) -> dict[str, ShapeSpec]:
        return self.neck.output_shape()

    @property
    def size_divisibility(self) -> int:
        shapes = self.bottom_up.output_shape()
        # detectron2's backbones say 0 for no constraint.
        return math.lcm(
            self.bottom_up.size_divisibility or 1, *(_declared(shapes[name].stride) for name in self.neck.in_features)
        )

    @property
    def padding_constraints(self) -> dict[str, int]:
        return self.bottom_up.padding_constraints


def _declared(value: int | None) -> int:
    """A channel count or stride that `ShapeSpec` may leave open and a pyramid must know."""
    if value is None:
        raise ValueError("input_shapes has a level without channels or without stride; it must say both")
    return value


def _output_levels(input_shapes: dict[str, ShapeSpec], num_levels: int) -> range:
    """Levels from the lowest input up, after checking that the inputs are contiguous."""
    if not input_shapes:
        raise ValueError("input_shapes is empty; it must hold one or more contiguous levels")
    strides = [_declared(shape.stride) for shape in input_shapes.values()]
    lowest = strides[0].bit_length() - 1
    if strides != [2 ** (lowest + i) for i in range(len(strides))]:
        found = ", ".join(f"{name} (stride {shape.stride})" for name, shape in input_shapes.items())
        raise ValueError(
            f"input_shapes is not contiguous: {found}; it must go from low to high levels, each with twice the stride "
            "of the one before, starting at a power of two"
        )
    if num_levels and num_levels < len(strides):
        raise ValueError(
            f"num_levels is {num_levels}; it must be 0 (as many as inputs) or at least {len(strides)}, the inputs"
        )
    return range(lowest, lowest + (num_levels or len(strides)))
