"""FPN: a top-down path that gives every level the semantics of the highest.

Lin et al., Feature Pyramid Networks for Object Detection, CVPR 2017.
"""

import itertools
import math

import fvcore.nn.weight_init as weight_init
from torch import Tensor, nn
from torch.nn import functional as F

from detectron2.layers import Conv2d, ShapeSpec, get_norm

from .backbone import Backbone
from .build import BACKBONE_REGISTRY
from .resnet import build_resnet_backbone

__all__ = [
    "FPN",
    "LastLevelMaxPool",
    "LastLevelP6P7",
    "build_resnet_fpn_backbone",
    "build_retinanet_resnet_fpn_backbone",
]


class FPN(Backbone):
    """1×1 laterals, top-down nearest 2× and add, 3×3 output convolutions.

    Outputs are named after their stride: p2 for 4, p3 for 8, and so on.

    Args:
        bottom_up: the network whose features are fused.
        in_features: names of its outputs to use, highest resolution first; strides must double from one to the next.
        out_channels: channels of every output.
        norm: normalization after every convolution; a name for `get_norm`.
        top_block: makes further levels above the highest. It has `num_levels`, `in_feature` (an output of the bottom-up
            network or of FPN), and returns a list of tensors.
        fuse_type: "sum", or "avg" for half the sum.
        square_pad: pad images to a square of this size; 0 for no such wish.
    """

    def __init__(
        self,
        bottom_up: Backbone,
        in_features: list[str],
        out_channels: int,
        norm: str = "",
        top_block: nn.Module | None = None,
        fuse_type: str = "sum",
        square_pad: int = 0,
    ) -> None:
        super().__init__()
        assert isinstance(bottom_up, Backbone)
        assert in_features, in_features
        assert fuse_type in {"avg", "sum"}
        shapes = [bottom_up.output_shape()[f] for f in in_features]
        strides = [shape.stride for shape in shapes]
        _assert_strides_are_log2_contiguous(strides)
        levels = [int(math.log2(stride)) for stride in strides]

        lateral_convs, output_convs = [], []
        for level, shape in zip(levels, shapes, strict=True):
            lateral = _conv(shape.channels, out_channels, 1, norm)
            output = _conv(out_channels, out_channels, 3, norm)
            # Only when both are built, so that a seed gives the same network on any detectron2.
            weight_init.c2_xavier_fill(lateral)
            weight_init.c2_xavier_fill(output)
            self.add_module(f"fpn_lateral{level}", lateral)
            self.add_module(f"fpn_output{level}", output)
            lateral_convs.append(lateral)
            output_convs.append(output)
        # Top-down order, in which forward uses them.
        self.lateral_convs = lateral_convs[::-1]
        self.output_convs = output_convs[::-1]

        self.top_block = top_block
        self.in_features = tuple(in_features)
        self.bottom_up = bottom_up
        if top_block is not None:
            levels += [levels[-1] + 1 + i for i in range(top_block.num_levels)]
        self._out_feature_strides = {f"p{level}": 2**level for level in levels}
        self._out_features = list(self._out_feature_strides)
        self._out_feature_channels = dict.fromkeys(self._out_features, out_channels)
        self._size_divisibility = strides[-1]
        self._square_pad = square_pad
        self._fuse_type = fuse_type

    @property
    def size_divisibility(self) -> int:
        return self._size_divisibility

    @property
    def padding_constraints(self) -> dict[str, int]:
        return {"square_size": self._square_pad}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """
        Args:
            x: (B, C, H, W); H and W are multiples of `size_divisibility`.

        Returns:
            Feature maps by name, highest resolution first.
        """
        bottom_up_features = self.bottom_up(x)
        prev = self.lateral_convs[0](bottom_up_features[self.in_features[-1]])
        results = [self.output_convs[0](prev)]
        for i in range(1, len(self.in_features)):
            top_down = F.interpolate(prev, scale_factor=2.0, mode="nearest")
            prev = self.lateral_convs[i](bottom_up_features[self.in_features[-1 - i]]) + top_down
            if self._fuse_type == "avg":
                prev = prev / 2
            results.insert(0, self.output_convs[i](prev))
        if self.top_block is not None:
            if self.top_block.in_feature in bottom_up_features:
                top_block_input = bottom_up_features[self.top_block.in_feature]
            else:
                top_block_input = results[self._out_features.index(self.top_block.in_feature)]
            results.extend(self.top_block(top_block_input))
        assert len(self._out_features) == len(results)
        return dict(zip(self._out_features, results))  # noqa: B905

    def output_shape(self) -> dict[str, ShapeSpec]:
        return super().output_shape()


def _conv(in_channels: int, out_channels: int, kernel_size: int, norm: str) -> Conv2d:
    return Conv2d(
        in_channels,
        out_channels,
        kernel_size=kernel_size,
        padding=kernel_size // 2,
        bias=norm == "",
        norm=get_norm(norm, out_channels),
    )


def _assert_strides_are_log2_contiguous(strides: list[int]) -> None:
    for low, high in itertools.pairwise(strides):
        assert high == 2 * low, f"Strides {low} {high} are not log2 contiguous"


class LastLevelMaxPool(nn.Module):
    """p6 as every second pixel of p5."""

    def __init__(self) -> None:
        super().__init__()
        self.num_levels = 1
        self.in_feature = "p5"

    def forward(self, x: Tensor) -> list[Tensor]:
        return [F.max_pool2d(x, kernel_size=1, stride=2, padding=0)]


class LastLevelP6P7(nn.Module):
    """p6 and p7 by 3×3 stride-2 convolutions, as in RetinaNet.

    Args:
        in_channels: channels of `in_feature`.
        out_channels: channels of p6 and p7.
        in_feature: the map to start from: an output of the bottom-up network or of FPN.
    """

    def __init__(self, in_channels: int, out_channels: int, in_feature: str = "res5") -> None:
        super().__init__()
        self.num_levels = 2
        self.in_feature = in_feature
        self.p6 = nn.Conv2d(in_channels, out_channels, 3, 2, 1)
        self.p7 = nn.Conv2d(out_channels, out_channels, 3, 2, 1)
        for module in [self.p6, self.p7]:
            weight_init.c2_xavier_fill(module)

    def forward(self, c5: Tensor) -> list[Tensor]:
        p6 = self.p6(c5)
        return [p6, self.p7(F.relu(p6))]


def _fpn_from_config(cfg, bottom_up: Backbone, top_block: nn.Module) -> FPN:
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


@BACKBONE_REGISTRY.register()
def build_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """ResNet, FPN, and p6 by pooling."""
    return _fpn_from_config(cfg, build_resnet_backbone(cfg, input_shape), LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_retinanet_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """ResNet, FPN, and p6 and p7 by convolutions of res5."""
    bottom_up = build_resnet_backbone(cfg, input_shape)
    top_block = LastLevelP6P7(bottom_up.output_shape()["res5"].channels, cfg.MODEL.FPN.OUT_CHANNELS)
    return _fpn_from_config(cfg, bottom_up, top_block)
