"""BiFPN: repeated bidirectional layers whose nodes learn how much each of their inputs matters.

Tan et al., EfficientDet: Scalable and Efficient Object Detection, CVPR 2020, sections 3 and 4.
"""

from collections.abc import Callable
from functools import reduce
from operator import add
from typing import NamedTuple

import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec
from fvcore.nn import weight_init
from torch import Tensor, nn, ones

from .layers import DOWNSAMPLE, UPSAMPLE, Downsample, Upsample, conv, nearest, size_of
from .neck import NECK_REGISTRY, Neck, NeckConfigError, check_at_least, choose

Weighting = Callable[[Tensor], Tensor]


class CompoundScaling(NamedTuple):
    """What EfficientDet-D0 to D7 scale together (table 1 of the paper)."""

    width: int
    num_layers: int
    head_depth: int
    input_size: int
    backbone: str


def compound_scaling(phi: int) -> CompoundScaling:
    """BiFPN width and layers, head depth, input pixels and timm backbone for the coefficient `phi`, 0 to 7."""
    if phi not in range(8):
        raise NeckConfigError(f"MODEL.NECK.BIFPN.COMPOUND is {phi}: choose 0 to 7, or -1 for no compound scaling")
    return CompoundScaling(
        width=(64, 88, 112, 160, 224, 288, 384, 384)[phi],
        num_layers=(3, 4, 5, 6, 7, 7, 8, 8)[phi],
        head_depth=3 + phi // 3,
        input_size=1536 if phi == 7 else 512 + 128 * phi,
        # From B6 on timm has weights for the port of TensorFlow's networks only.
        backbone=f"{'tf_' if phi >= 6 else ''}efficientnet_b{phi}",
    )


def fast_weights(w: Tensor, eps: float = 1e-4) -> Tensor:
    """w_i = ReLU(w_i) / (ε + Σ ReLU(w_j)): in [0, 1] as with softmax, without its cost."""
    w = F.relu(w)
    return w / (eps + w.sum())


def softmax_weights(w: Tensor) -> Tensor:
    return w.softmax(dim=0)


def unbounded_weights(w: Tensor) -> Tensor:
    return w


FUSION: dict[str, Weighting] = {"fast": fast_weights, "softmax": softmax_weights, "unbounded": unbounded_weights}


def max_pool(in_channels: int, out_channels: int, norm: str = "") -> nn.Module:
    """3×3 max pooling with stride 2, EfficientDet's downsampling."""
    return nn.MaxPool2d(kernel_size=3, stride=2, padding=1)


class Node(nn.Module):
    """Weighted sum of maps of one shape, then a depthwise-separable 3×3 convolution, norm and SiLU."""

    def __init__(self, num_inputs: int, channels: int, norm: str = "BN", weighting: Weighting = fast_weights):
        super().__init__()
        self.weight = nn.Parameter(ones(num_inputs))
        self.weighting = weighting
        self.depthwise = Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        weight_init.c2_xavier_fill(self.depthwise)
        self.pointwise = conv(channels, channels, norm=norm, activation=F.silu)

    def fuse(self, *inputs: Tensor) -> Tensor:
        weighted = (w * x for w, x in zip(self.weighting(self.weight).unbind(), inputs, strict=True))
        return reduce(add, weighted)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(self.fuse(*inputs)))


class BiFPNLayer(nn.Module):
    """One bidirectional layer over `num_levels` maps of equal channels.

    td_i = node(in_i, up(td_{i+1})) from the second highest level down, then out_i = node(in_i, td_i, down(out_{i-1}))
    up. The lowest level's td is its output; the highest level has no td, which would have a single input.
    """

    def __init__(
        self,
        num_levels: int,
        channels: int,
        norm: str,
        weighting: Weighting,
        upsample: Upsample,
        downsample: Downsample,
    ):
        super().__init__()
        steps = range(num_levels - 1)
        self.upsample = upsample
        self.top_down = nn.ModuleList(Node(2, channels, norm, weighting) for _ in steps)
        self.down = nn.ModuleList(downsample(channels, channels, norm) for _ in steps)
        self.bottom_up = nn.ModuleList(Node(2 if i == num_levels - 2 else 3, channels, norm, weighting) for i in steps)

    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        """Map (B, C, H_i, W_i), lowest level first, to the same shapes."""
        td = inputs[-1:]
        for i in reversed(range(len(self.top_down))):
            td.insert(0, self.top_down[i](inputs[i], self.upsample(td[0], size_of(inputs[i]))))
        outputs = td[:1]
        for i, (down, node) in enumerate(zip(self.down, self.bottom_up, strict=True), start=1):
            x = inputs[i]
            own = (x,) if i == len(inputs) - 1 else (x, td[i])
            outputs.append(node(*own, nearest(down(outputs[-1]), size_of(x))))
        return outputs


@NECK_REGISTRY.register()
class BiFPN(Neck):
    """1×1 projections, then `num_layers` bidirectional layers.

    Extra top levels enter the first layer: the first is a 1×1 projection of the highest input, max-pooled by 2, each
    further one is the level below it, max-pooled by 2.

    Args:
        input_shapes: channels and stride of each bottom-up level, lowest level first.
        out_channels: channels of every output level.
        num_levels: output levels, 0 for as many as inputs.
        norm: a name that `detectron2.layers.get_norm` knows, "" for none.
        num_layers: bidirectional layers, at least one.
        weighting: makes the weights of a node's inputs from its parameters: `fast_weights`, `softmax_weights` or
            `unbounded_weights`.
        upsample: brings a level of the top-down path to the size of the one below it.
        downsample: makes the stride-2 layer of the bottom-up path from (in_channels, out_channels, norm).
    """

    @configurable
    def __init__(
        self,
        input_shapes: dict[str, ShapeSpec],
        out_channels: int,
        num_levels: int = 0,
        norm: str = "BN",
        num_layers: int = 3,
        weighting: Weighting = fast_weights,
        upsample: Upsample = nearest,
        downsample: Downsample = max_pool,
    ):
        super().__init__(input_shapes, out_channels, num_levels)
        check_at_least("MODEL.NECK.BIFPN.NUM_LAYERS", num_layers, 1)
        read = self.in_channels + self.in_channels[-1:] * min(self.num_extra_levels, 1)
        self.project = nn.ModuleList(conv(channels, out_channels, norm=norm) for channels in read)
        layer = (len(self.levels), out_channels, norm, weighting, upsample, downsample)
        self.layers = nn.Sequential(*(BiFPNLayer(*layer) for _ in range(num_layers)))

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shapes: dict[str, ShapeSpec]) -> dict:
        bifpn = cfg.MODEL.NECK.BIFPN
        args = {
            **super().from_config(cfg, input_shapes),
            "norm": cfg.MODEL.NECK.NORM,
            "num_layers": bifpn.NUM_LAYERS,
            "weighting": choose("MODEL.NECK.BIFPN.FUSION", bifpn.FUSION, FUSION),
            "upsample": choose("MODEL.NECK.BIFPN.UPSAMPLE", bifpn.UPSAMPLE, UPSAMPLE),
            "downsample": choose("MODEL.NECK.BIFPN.DOWNSAMPLE", bifpn.DOWNSAMPLE, {"pool": max_pool, **DOWNSAMPLE}),
        }
        if bifpn.COMPOUND != -1:
            scaling = compound_scaling(bifpn.COMPOUND)
            args |= {"out_channels": scaling.width, "num_layers": scaling.num_layers}
        return args

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        maps = self.inputs(features)
        if self.num_extra_levels:
            maps.append(maps[-1])
        maps = [project(x) for x, project in zip(maps, self.project, strict=True)]
        for i in range(len(self.in_features), len(self.levels)):
            below = maps.pop() if i == len(self.in_features) else maps[-1]
            maps.append(F.max_pool2d(below, kernel_size=3, stride=2, padding=1))
        return dict(zip(self.names, self.layers(maps), strict=True))
