"""BiFPN: repeated bidirectional layers whose nodes learn how much each of their inputs matters.

Tan et al., EfficientDet: Scalable and Efficient Object Detection, CVPR 2020, sections 3 and 4.
"""

import operator
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, FrozenBatchNorm2d, ShapeSpec
from fvcore.nn import weight_init
from torch import Tensor, nn

from .errors import check_at_least, choose
from .layers import UPSAMPLE, Downsample, Norm, Upsample, conv, crop, nearest, norm_layer, size_of, top_down_path
from .neck import NECK_REGISTRY, Neck
from .sa_layers import DOWNSAMPLE

Weighting = Callable[[Tensor], Tensor]
"""Makes the weights of a node's inputs, (number of inputs,), from its parameters of that shape."""


class CompoundScaling(NamedTuple):
    """What EfficientDet-D0 to D7 scale in the BiFPN (table 1 of the paper).

    Attributes:
        width: channels.
        num_layers: bidirectional layers.
        weighted: whether the nodes learn weights; those of D6 and D7 add up.
    """

    width: int
    num_layers: int
    weighted: bool


def compound_scaling(phi: int) -> CompoundScaling:
    """Say what EfficientDet's compound coefficient stands for.

    Args:
        phi: 0 to 7.

    Raises:
        ValueError: another number.
    """
    if phi not in range(8):
        raise ValueError(f"compound is {phi}; it must be 0 to 7, or -1 for no compound scaling")
    return CompoundScaling(
        width=(64, 88, 112, 160, 224, 288, 384, 384)[phi],
        num_layers=(3, 4, 5, 6, 7, 7, 8, 8)[phi],
        weighted=phi < 6,
    )


def fast_weights(w: Tensor, eps: float = 1e-4) -> Tensor:
    """w_i = ReLU(w_i) / (ε + Σ ReLU(w_j)): in [0, 1] as with softmax, without its cost."""
    w = F.relu(w)
    return w / (eps + w.sum())


def softmax_weights(w: Tensor) -> Tensor:
    """w_i = exp(w_i) / Σ exp(w_j)."""
    return w.softmax(dim=0)


def unbounded_weights(w: Tensor) -> Tensor:
    """The parameters themselves."""
    return w


FUSION: dict[str, Weighting | None] = {
    "fast": fast_weights,
    "softmax": softmax_weights,
    "unbounded": unbounded_weights,
    "sum": None,
}


class SamePool(nn.Module):
    """3×3 max pooling with stride 2, padded as TensorFlow does: ceil(H / 2) rows, the last at the lower border."""

    def forward(self, x: Tensor) -> Tensor:
        height, width = size_of(x)
        # An even size has all of its padding behind, an odd one a half on each side.
        return F.max_pool2d(F.pad(x, (width % 2, 1, height % 2, 1), value=-torch.inf), kernel_size=3, stride=2)


def same_pool(in_channels: int, out_channels: int, norm: Norm = "") -> nn.Module:
    """Make EfficientDet's downsampling, which keeps the channels."""
    return SamePool()


def efficientdet_norm(norm: Norm) -> Norm:
    """The norm with EfficientDet's ε of 1e-3 and momentum of 0.01, if it is a batch norm."""
    return partial(_efficientdet_norm, norm) if norm else norm


def _efficientdet_norm(norm: Norm, channels: int) -> nn.Module | None:
    layer = norm_layer(norm, channels)
    if isinstance(layer, (nn.modules.batchnorm._BatchNorm, FrozenBatchNorm2d)):
        layer.eps = 1e-3
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        layer.momentum = 0.01
    return layer


class Node(nn.Module):
    """Weighted sum of maps of one shape, SiLU, a depthwise-separable 3×3 convolution and norm.

    Args:
        num_inputs: maps to sum.
        channels: of each map.
        norm: see `necks.layers.Norm`.
        weighting: see `Weighting`; None for a plain sum without parameters.
        pre_activation: False to put the SiLU after the norm instead.
    """

    def __init__(
        self,
        num_inputs: int,
        channels: int,
        norm: Norm = "BN",
        weighting: Weighting | None = fast_weights,
        pre_activation: bool = True,
    ) -> None:
        super().__init__()
        self.weighting = weighting
        self.pre_activation = pre_activation
        self.weight = None if weighting is None else nn.Parameter(torch.ones(num_inputs))
        self.depthwise = Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        weight_init.c2_xavier_fill(self.depthwise)
        self.pointwise = conv(channels, channels, norm=norm, activation=None if pre_activation else F.silu)

    def fuse(self, *inputs: Tensor) -> Tensor:
        """The weighted sum of (B, C, H, W) maps."""
        if self.weighting is None or self.weight is None:
            return reduce(operator.add, inputs)
        weights = self.weighting(self.weight)
        return reduce(operator.add, (weights[i] * x for i, x in enumerate(inputs)))

    def forward(self, *inputs: Tensor) -> Tensor:
        fused = self.fuse(*inputs)
        return self.pointwise(self.depthwise(F.silu(fused) if self.pre_activation else fused))


class BiFPNLayer(nn.Module):
    """One bidirectional layer.

    td_i = node(in_i, up(td_{i+1})) from the second highest level down, then out_i = node(in_i, td_i, down(out_{i-1}))
    up. The lowest level's td is its output; the highest level has no td, which would have a single input. Each edge
    from an input of other than `channels` channels starts with a 1×1 convolution and norm of its own.

    Args:
        in_channels: of each level, lowest level first.
        channels: of every output level.
        norm: see `necks.layers.Norm`.
        weighting, pre_activation: see `Node`.
        upsample: brings td_{i+1} to the size of level i.
        downsample: makes the layer that brings out_{i-1} to level i.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int,
        norm: Norm,
        weighting: Weighting | None,
        upsample: Upsample,
        downsample: Downsample,
        pre_activation: bool = True,
    ) -> None:
        super().__init__()
        steps = len(in_channels) - 1
        self.upsample = upsample
        self.lateral_down = nn.ModuleList(lateral(c, channels, norm) for c in in_channels)
        self.lateral_up = nn.ModuleList(lateral(c, channels, norm) for c in in_channels[1:])
        node = partial(Node, channels=channels, norm=norm, weighting=weighting, pre_activation=pre_activation)
        self.top_down = nn.ModuleList(node(2) for _ in range(steps))
        self.down = nn.ModuleList(downsample(channels, channels, norm) for _ in range(steps))
        self.bottom_up = nn.ModuleList(node(2 if i == steps - 1 else 3) for i in range(steps))

    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        """Map (B, C_i, H_i, W_i), lowest level first, to (B, channels, H_i, W_i)."""
        down = [edge(x) for x, edge in zip(inputs, self.lateral_down, strict=True)]
        up = [edge(x) for x, edge in zip(inputs[1:], self.lateral_up, strict=True)]
        lowest, *middle = top_down_path(down, self.upsample, self.top_down)
        outputs = [lowest]
        # The last of `middle` is the highest level, which has no td.
        own = [*zip(up[:-1], middle[:-1], strict=True), *((x,) for x in up[-1:])]
        for maps, downsample, node in zip(own, self.down, self.bottom_up, strict=True):
            outputs.append(node(*maps, crop(downsample(outputs[-1]), size_of(maps[0]))))
        return outputs


def lateral(in_channels: int, channels: int, norm: Norm) -> nn.Module:
    """Make the start of an edge: a 1×1 convolution and norm, nothing where the channels agree."""
    return nn.Identity() if in_channels == channels else conv(in_channels, channels, norm=norm)


@NECK_REGISTRY.register()
class BiFPN(Neck):
    """Bidirectional layers one after the other, as in EfficientDet's code.

    Extra top levels enter the first layer: the first is a 1×1 convolution with norm of the highest input, max-pooled by
    2, each further one is the level below it, max-pooled by 2. Batch norms have EfficientDet's ε of 1e-3 and momentum
    of 0.01.

    Args:
        input_shapes: channels and stride of each bottom-up level, lowest level first.
        out_channels: channels of every output level.
        num_levels: output levels, 0 for as many as inputs.
        norm: a name that `detectron2.layers.get_norm` knows, "" for none.
        num_layers: bidirectional layers, at least one.
        weighting: makes the weights of a node's inputs from its parameters: `fast_weights`, `softmax_weights` or
            `unbounded_weights`; None for plain sums.
        upsample: brings a level of the top-down path to the size of the one below it.
        downsample: makes the stride-2 layer of the bottom-up path from (in_channels, out_channels, norm).
        as_in_paper: follow the text of the paper where the code of its authors differs: nodes of convolution, norm and
            activation in this order, and one 1×1 convolution per input level in place of one per edge.
    """

    @configurable
    def __init__(
        self,
        input_shapes: dict[str, ShapeSpec],
        out_channels: int,
        num_levels: int = 0,
        norm: Norm = "BN",
        num_layers: int = 3,
        weighting: Weighting | None = fast_weights,
        upsample: Upsample = nearest,
        downsample: Downsample = same_pool,
        as_in_paper: bool = False,
    ) -> None:
        super().__init__(input_shapes, out_channels, num_levels)
        check_at_least("num_layers", num_layers, 1)
        norm = efficientdet_norm(norm)
        widths = self.in_channels
        self.shared = nn.ModuleList()
        if as_in_paper:
            self.shared.extend(conv(channels, out_channels, norm=norm) for channels in widths)
            widths = [out_channels] * len(widths)
        extra = self.num_extra_levels
        self.extra = nn.ModuleList(SamePool() for _ in range(extra))
        self.lateral_extra = nn.ModuleList(
            lateral(c, out_channels, norm) for c in self.in_channels[-1:] * min(extra, 1)
        )
        rest = (out_channels, norm, weighting, upsample, downsample, not as_in_paper)
        first = [*widths, *[out_channels] * extra]
        later = [out_channels] * len(first)
        self.layers = nn.Sequential(*(BiFPNLayer(later if i else first, *rest) for i in range(num_layers)))

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shapes: dict[str, ShapeSpec]) -> dict[str, Any]:
        bifpn = cfg.MODEL.NECK.BIFPN
        args = {
            **super().from_config(cfg, input_shapes),
            "norm": cfg.MODEL.NECK.NORM,
            "num_layers": bifpn.NUM_LAYERS,
            "weighting": choose("MODEL.NECK.BIFPN.FUSION", bifpn.FUSION, FUSION),
            "upsample": choose("MODEL.NECK.BIFPN.UPSAMPLE", bifpn.UPSAMPLE, UPSAMPLE),
            "downsample": choose("MODEL.NECK.BIFPN.DOWNSAMPLE", bifpn.DOWNSAMPLE, {"pool": same_pool, **DOWNSAMPLE}),
            "as_in_paper": bifpn.AS_IN_PAPER,
        }
        if bifpn.COMPOUND != -1:
            scaling = compound_scaling(bifpn.COMPOUND)
            args |= {"out_channels": scaling.width, "num_layers": scaling.num_layers}
            if not scaling.weighted:
                args["weighting"] = None
        return args

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        maps = self.inputs(features)
        above = [edge(maps[-1]) for edge in self.lateral_extra]
        if self.shared:
            maps = [project(x) for x, project in zip(maps, self.shared, strict=True)]
        for pool in self.extra:
            above.append(pool(above[-1]))
        return dict(zip(self.names, self.layers([*maps, *above[1:]]), strict=True))
