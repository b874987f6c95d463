"""Recursive feature pyramid: look, then look again with what was seen fed back into the bottom-up network.

Qiao et al., DetectoRS: Detecting Objects with Recursive Feature Pyramid and Switchable Atrous Convolution, CVPR 2021,
section 3.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone, ResNet
from detectron2.modeling.backbone.resnet import BasicBlock, BottleneckBlock
from torch import Tensor, nn

from .errors import check_at_least
from .fpn import FPN
from .layers import MakeExtraLevels, chosen_extra_levels, nearest, pooled_levels, size_of
from .neck import NECK_REGISTRY, Neck, NeckBackbone

FIRST_STRIDE = 4
"""Stride of a ResNet's first stage, which takes no feedback."""


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: four views of a map, a quarter of the channels each, after ReLU.

    The views are a 1×1 convolution, 3×3 convolutions dilated by 3 and by 6, and a 1×1 convolution of the global mean.

    Args:
        channels: that it reads and makes; those beyond a multiple of four go to the last view.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        quarter = channels // 4
        self.point = nn.Conv2d(channels, quarter, 1)
        self.dilated = nn.ModuleList(nn.Conv2d(channels, quarter, 3, padding=d, dilation=d) for d in (3, 6))
        self.context = nn.Conv2d(channels, channels - 3 * quarter, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        context = self.context(x.mean(dim=(2, 3), keepdim=True)).expand(-1, -1, *size_of(x))
        return F.relu(torch.cat([self.point(x), *(dilated(x) for dilated in self.dilated), context], dim=1))


@NECK_REGISTRY.register()
class RFP(Neck):
    """FPN and what makes it recursive: transforms of its output into feedback, and the gate between two steps.

    On features alone, without the bottom-up network, it is a plain FPN: the first step. `wrap` makes the recursion.

    Args:
        input_shapes: channels and stride of each bottom-up level, lowest level first.
        out_channels: channels of every output level, at least 4.
        num_levels: output levels, 0 for as many as inputs.
        norm: a name that `detectron2.layers.get_norm` knows, "" for none.
        steps: how often the image is looked at, 2 or more.
        shared: the bottom-up network is the same in all steps. Otherwise each step after the first has one of its own,
            which starts as a copy of the first.
        extra_levels: makes the levels above the inputs, one of `necks.layers.EXTRA_LEVELS`.

    Raises:
        ValueError: fewer steps or channels, or no level above the first stage.
    """

    @configurable
    def __init__(
        self,
        input_shapes: dict[str, ShapeSpec],
        out_channels: int,
        num_levels: int = 0,
        norm: str = "",
        steps: int = 2,
        shared: bool = False,
        extra_levels: MakeExtraLevels = pooled_levels,
    ) -> None:
        super().__init__(input_shapes, out_channels, num_levels)
        check_at_least("out_channels", out_channels, 4)
        check_at_least("steps", steps, 2)
        self.steps = steps
        self.shared = shared
        self.fpn = FPN(input_shapes, out_channels, num_levels, norm, extra_levels=extra_levels)
        self.aspp = ASPP(out_channels)
        # Starting from zero, training begins with the bottom-up network as it was pretrained.
        inputs = zip(self.levels, self.in_features, self.in_channels, strict=False)
        above_first = {name: channels for level, name, channels in inputs if 2**level > FIRST_STRIDE}
        if not above_first:
            raise ValueError(
                "input_shapes has no level above the first stage of a ResNet, to which RFP could feed back"
            )
        self.feedback = nn.ModuleDict({name: _zero_conv(out_channels, c) for name, c in above_first.items()})
        self.gate = _zero_conv(out_channels, 1)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shapes: dict[str, ShapeSpec]) -> dict[str, Any]:
        return super().from_config(cfg, input_shapes) | {
            "norm": cfg.MODEL.NECK.NORM,
            "steps": cfg.MODEL.NECK.RFP.STEPS,
            "shared": cfg.MODEL.NECK.RFP.SHARED,
            "extra_levels": chosen_extra_levels(cfg),
        }

    def wrap(self, bottom_up: Backbone) -> "RecursiveBackbone":
        return RecursiveBackbone(bottom_up, self)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.fpn(features)

    def feed_back(self, pyramid: dict[str, Tensor]) -> dict[str, Tensor]:
        """What each stage above the first is to add in the next step, by its name and with its channels."""
        levels = dict(zip(self.in_features, pyramid.values(), strict=False))
        return {name: feedback(self.aspp(levels[name])) for name, feedback in self.feedback.items()}

    def blend(self, before: dict[str, Tensor], after: dict[str, Tensor]) -> dict[str, Tensor]:
        """g · after + (1 − g) · before, where g is a sigmoid of `after` at each pixel."""
        # Under autocast a norm may leave a map in another type than the gate's convolution gives.
        gates = {name: self.gate(p).sigmoid().to(p.dtype) for name, p in after.items()}
        return {name: torch.lerp(before[name].to(p.dtype), p, gates[name]) for name, p in after.items()}


class RecursiveBackbone(NeckBackbone):
    """A ResNet and the recursive pyramid on it.

    The feedback of a level joins the sum that ends the first block of the stage with that name, before its ReLU.

    Args:
        bottom_up: the network of the first step.
        neck: what makes feedback of pyramids, and one pyramid of two.

    Raises:
        ValueError: the bottom-up network has no stages of residual blocks to feed back into.
    """

    bottom_up: ResNet
    neck: RFP
    later: nn.ModuleList

    def __init__(self, bottom_up: Backbone, neck: RFP) -> None:
        resnet = _check_stages(bottom_up, list(neck.feedback))
        super().__init__(resnet, neck)
        copies = 0 if neck.shared else neck.steps - 1
        self.later = nn.ModuleList(LaterNetwork(copy.deepcopy(resnet)) for _ in range(copies))
        self.register_load_state_dict_pre_hook(_start_later_networks_from_the_first)

    def pyramid(self, images: Tensor) -> dict[str, Tensor]:
        pyramid = self.neck(self.bottom_up(images))
        for step in range(self.neck.steps - 1):
            feedback = self.neck.feed_back(pyramid)
            if self.neck.shared:
                features = look_again(self.bottom_up, images, feedback)
            else:
                features = self.later[step](images, feedback)
            pyramid = self.neck.blend(pyramid, self.neck(features))
        return pyramid


class LaterNetwork(nn.Module):
    """The parts of a ResNet under other names.

    Where only the end of a name has to fit, as in detectron2's checkpoints of backbones, a weight of the first network
    would otherwise fit the later ones too, and loading would stop.
    """

    def __init__(self, resnet: ResNet) -> None:
        super().__init__()
        self.first_layers = resnet.stem
        self.stages = nn.ModuleList(resnet.stages)
        self.stage_names = resnet.stage_names

    @property
    def stem(self) -> nn.Module:
        return self.first_layers

    def forward(self, images: Tensor, feedback: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return look_again(self, images, feedback)


def look_again(network: ResNet | LaterNetwork, images: Tensor, feedback: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Run a ResNet with feedback.

    Args:
        network: the ResNet, or its parts.
        images: (B, 3, H, W).
        feedback: for the stages of these names, (B, C, h, w) to add, with the channels of the stage and any size.

    Returns:
        The output of every stage.
    """
    x = network.stem(images)
    features = {}
    for name, stage in zip(network.stage_names, network.stages, strict=True):
        first, *others = stage.children()
        x = add_before_relu(first, x, feedback[name]) if name in feedback else first(x)
        for block in others:
            x = block(x)
        features[name] = x
    return features


def add_before_relu(block: nn.Module, x: Tensor, feedback: Tensor) -> Tensor:
    """ReLU(residual(x) + shortcut(x) + feedback): a residual block of detectron2 with one term more.

    Args:
        block: a `BasicBlock` or `BottleneckBlock`: two or three convolutions with norms, and perhaps one as shortcut.
        x: (B, C_in, H, W).
        feedback: (B, C, h, w), resized to the block's output.

    Returns:
        (B, C, H', W').
    """
    layers = dict(block.named_children())
    shortcut = layers.pop("shortcut", None)
    *inner, last = layers.values()
    out = x
    for conv in inner:
        out = F.relu(conv(out))
    total = last(out) + (x if shortcut is None else shortcut(x))
    return F.relu(total + nearest(feedback, size_of(total)))


def _check_stages(bottom_up: Backbone, names: list[str]) -> ResNet:
    """The bottom-up network, if it is a ResNet whose stages of these names can take feedback."""
    if not isinstance(bottom_up, ResNet):
        raise ValueError(f"bottom_up is a {type(bottom_up).__name__}; RFP feeds back into the blocks of a ResNet")
    stages = dict(zip(bottom_up.stage_names, bottom_up.stages, strict=True))
    for name in names:
        if name not in stages:
            raise ValueError(f"in_features has {name}; RFP can feed back into {', '.join(stages)} only")
        block = stages[name][0]
        if not isinstance(block, (BasicBlock, BottleneckBlock)):
            raise ValueError(
                f"bottom_up has a {type(block).__name__} in {name}; RFP feeds back into BasicBlock and BottleneckBlock"
            )
    return bottom_up


def _start_later_networks_from_the_first(
    backbone: RecursiveBackbone, state_dict: dict[str, Any], prefix: str, *_: object
) -> None:
    """Give the later networks the weights of the first, where a checkpoint holds none of theirs."""
    parts = {"first_layers": "stem"} | {f"stages.{k}": name for k, name in enumerate(backbone.bottom_up.stage_names)}
    for i in range(len(backbone.later)):
        later = f"{prefix}later.{i}."
        if any(name.startswith(later) for name in state_dict):
            continue
        for own, first in parts.items():
            start = f"{prefix}bottom_up.{first}."
            state_dict |= {
                f"{later}{own}.{name.removeprefix(start)}": value
                for name, value in list(state_dict.items())
                if name.startswith(start)
            }


def _zero_conv(in_channels: int, out_channels: int) -> nn.Conv2d:
    layer = nn.Conv2d(in_channels, out_channels, 1)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
