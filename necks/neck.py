"""The contract that every neck keeps.

A neck stands between a bottom-up network and a detector's head. It takes the named feature maps of contiguous levels
and returns a pyramid `{"p2": …, "p3": …}` in which level k has stride 2**k and all levels have equally many channels.
"""

import math
from collections.abc import Iterable, Mapping
from typing import TypeVar

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling import Backbone
from detectron2.utils.registry import Registry
from torch import Tensor, nn

T = TypeVar("T")

NECK_REGISTRY = Registry("NECK")
NECK_REGISTRY.__doc__ = """
Registry of necks. A registered object is called as `obj(cfg, input_shapes)`, `input_shapes` being the `ShapeSpec` of
each level of `MODEL.NECK.IN_FEATURES`, and returns a `Neck`.
"""


class NeckConfigError(ValueError):
    """A mistake in a neck's configuration. The message is one line with the config key and the valid choices."""


def choose(key: str, name: str, choices: Mapping[str, T] | Iterable[tuple[str, T]]) -> T:
    """`choices[name]`, or a NeckConfigError that names the config `key` and lists the choices."""
    choices = dict(choices)
    if name not in choices:
        raise NeckConfigError(f"{key} is {name!r}: choose one of {', '.join(sorted(choices))}")
    return choices[name]


def check_at_least(key: str, value: float, minimum: float) -> None:
    """Raise a NeckConfigError that names the config `key` if its `value` is below `minimum`."""
    if not value >= minimum:
        raise NeckConfigError(f"{key} is {value}: choose {minimum} or more")


def norm_layer(norm: str, channels: int) -> nn.Module | None:
    """`detectron2.layers.get_norm`, with a NeckConfigError where norm or number of channels do not exist for it."""
    try:
        return get_norm(norm, channels)
    except (KeyError, ValueError) as error:
        raise NeckConfigError(
            f"MODEL.NECK.NORM is {norm!r}, for {channels} channels: choose BN, SyncBN, FrozenBN, LN, "
            'GN (needs a multiple of 32 channels) or "" for none'
        ) from error


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

    Raises:
        NeckConfigError: on levels or numbers that make no pyramid.
    """

    def __init__(self, input_shapes: dict[str, ShapeSpec], out_channels: int, num_levels: int = 0):
        super().__init__()
        check_at_least("MODEL.NECK.OUT_CHANNELS", out_channels, 1)
        self.in_features = list(input_shapes)
        self.in_channels = [shape.channels for shape in input_shapes.values()]
        self.out_channels = out_channels
        self.levels = _output_levels(input_shapes, num_levels)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shapes: dict[str, ShapeSpec]) -> dict:
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
        """The (B, C, H, W) maps of `in_features`, lowest level first, checked against the declared channels."""
        missing = [name for name in self.in_features if name not in features]
        if missing:
            raise NeckConfigError(
                f"MODEL.NECK.IN_FEATURES needs {', '.join(missing)}: choose among {', '.join(features)}"
            )
        maps = [features[name] for name in self.in_features]
        for name, x, channels in zip(self.in_features, maps, self.in_channels, strict=True):
            if x.shape[1] != channels:
                raise NeckConfigError(
                    f"MODEL.NECK.IN_FEATURES: {name} has {x.shape[1]} channels, "
                    f"choose a bottom-up network that gives the {channels} it declares"
                )
        return maps

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Map bottom-up features, (B, C_in, H, W) each, to `{"p2": (B, out_channels, H, W), …}`, lowest level first."""
        raise NotImplementedError

    def wrap(self, bottom_up: Backbone) -> "NeckBackbone":
        """Join this neck and the network below it into a backbone.

        Override it in a neck that does more than read the features once: one that runs the bottom-up network again, or
        one that supervises further pyramids in training (see `SupervisedNeckBackbone`).
        """
        return NeckBackbone(bottom_up, self)


class NeckBackbone(Backbone):
    """A bottom-up network and the neck on it, as one detectron2 backbone.

    Images may have any size. Their batch is padded to a multiple of the stride of the highest input level, as for
    detectron2's FPN, and of what the bottom-up network asks for.
    """

    def __init__(self, bottom_up: Backbone, neck: Neck):
        super().__init__()
        self.bottom_up = bottom_up
        self.neck = neck

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map images (B, 3, H, W) to the neck's pyramid."""
        return self.neck(self.bottom_up(images))

    def output_shape(self) -> dict[str, ShapeSpec]:
        return self.neck.output_shape()

    @property
    def size_divisibility(self) -> int:
        strides = (
            shape.stride for name, shape in self.bottom_up.output_shape().items() if name in self.neck.in_features
        )
        # detectron2's backbones say 0 for no constraint.
        return math.lcm(self.bottom_up.size_divisibility or 1, *strides)

    @property
    def padding_constraints(self) -> dict[str, int]:
        return self.bottom_up.padding_constraints


class SupervisedNeckBackbone(NeckBackbone):
    """A backbone whose neck supervises auxiliary pyramids in training: the neck has its own `forward_supervised`."""

    def forward_supervised(self, images: Tensor) -> tuple[dict[str, Tensor], list[tuple[float, dict[str, Tensor]]]]:
        """The pyramid, and (loss weight, pyramid with the same names and channels) of each auxiliary supervision."""
        return self.neck.forward_supervised(self.bottom_up(images))


def _output_levels(input_shapes: dict[str, ShapeSpec], num_levels: int) -> range:
    """Levels from the lowest input up, after checking that the inputs are contiguous."""
    if not input_shapes:
        raise NeckConfigError("MODEL.NECK.IN_FEATURES is empty: choose one or more contiguous levels")
    strides = [shape.stride for shape in input_shapes.values()]
    lowest = strides[0].bit_length() - 1
    if strides != [2 ** (lowest + i) for i in range(len(strides))]:
        found = ", ".join(f"{name} (stride {shape.stride})" for name, shape in input_shapes.items())
        raise NeckConfigError(
            f"MODEL.NECK.IN_FEATURES is not contiguous: {found}. "
            "Choose levels from low to high, each with twice the stride of the one before, starting at a power of two"
        )
    if num_levels and num_levels < len(strides):
        raise NeckConfigError(
            f"MODEL.NECK.NUM_LEVELS is {num_levels}, fewer than the {len(strides)} levels of MODEL.NECK.IN_FEATURES: "
            f"choose 0 (as many as inputs) or at least {len(strides)}"
        )
    return range(lowest, lowest + (num_levels or len(strides)))
