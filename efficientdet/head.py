"""The class net and the box net, which all levels share."""

import math
from collections import OrderedDict
from typing import cast

import torch.nn.functional as F
from detectron2.layers import FrozenBatchNorm2d, get_norm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class EfficientDetHead(nn.Module):
    """Class logits and box deltas of every anchor of every level.

    Args:
        channels: of every level.
        num_levels: levels of the pyramid.
        num_anchors: anchors at each cell.
        num_classes: K, classes of objects.
        depth: separable convolutions before the last one in each of the two nets.
        norm: a name that `detectron2.layers.get_norm` knows, "" for none.
        prior_prob: score that every class of every anchor starts with.
    """

    def __init__(
        self,
        channels: int,
        num_levels: int,
        num_anchors: int,
        num_classes: int,
        depth: int = 3,
        norm: str = "BN",
        prior_prob: float = 0.01,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.class_tower = Tower(channels, depth, num_levels, norm)
        self.box_tower = Tower(channels, depth, num_levels, norm)
        self.class_logits = separable_conv(
            channels, num_anchors * num_classes, bias=-math.log((1 - prior_prob) / prior_prob)
        )
        self.box_deltas = separable_conv(channels, num_anchors * 4, bias=0.0)

    def forward(self, levels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Logits (B, N_i, K) and deltas (dx, dy, dw, dh), (B, N_i, 4), of the N_i anchors of each level.

        Args:
            levels: (B, channels, H_i, W_i) each, lowest level first. The anchors are in the order of
                `EfficientDetAnchors`.
        """
        logits = [self.class_logits(self.class_tower(x, i)) for i, x in enumerate(levels)]
        deltas = [self.box_deltas(self.box_tower(x, i)) for i, x in enumerate(levels)]
        return [_by_anchor(x, self.num_classes) for x in logits], [_by_anchor(x, 4) for x in deltas]


class Tower(nn.Module):
    """Separable convolutions that the levels share, each followed by a norm of the level's own and SiLU.

    Args:
        channels: in and out.
        depth: convolutions.
        num_levels: levels.
        norm: a name that `detectron2.layers.get_norm` knows, "" for none.
    """

    def __init__(self, channels: int, depth: int, num_levels: int, norm: str) -> None:
        super().__init__()
        self.convs = nn.ModuleList(separable_conv(channels, channels, bias=None if norm else 0.0) for _ in range(depth))
        self.norms = nn.ModuleList(
            nn.ModuleList(make_norm(norm, channels) for _ in range(depth)) for _ in range(num_levels)
        )

    def forward(self, x: Tensor, level: int) -> Tensor:
        """(B, channels, H, W) to the same shape, with the norms of this level."""
        for conv, norm in zip(self.convs, cast(nn.ModuleList, self.norms[level]), strict=True):
            x = F.silu(norm(conv(x)))
        return x


def separable_conv(in_channels: int, out_channels: int, bias: float | None) -> nn.Sequential:
    """Make a depthwise 3×3 convolution and a 1×1 convolution, drawn from normal distributions of variance 1 / fan-in.

    Args:
        in_channels: channels that it reads.
        out_channels: channels that it makes.
        bias: what those of the 1×1 convolution are at first, None for no bias.
    """
    depthwise = nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False)
    pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=bias is not None)
    for conv in (depthwise, pointwise):
        nn.init.kaiming_normal_(conv.weight, nonlinearity="linear")
    if pointwise.bias is not None and bias is not None:
        nn.init.constant_(pointwise.bias, bias)
    return nn.Sequential(OrderedDict(depthwise=depthwise, pointwise=pointwise))


def make_norm(norm: str, channels: int) -> nn.Module:
    """Make the layer that `detectron2.layers.get_norm` knows by a name, a batch norm as EfficientDet's authors have it.

    Its ε is 1e-3, and its running statistics are averages with decay 0.99.

    Args:
        norm: the name, "" for a layer that does nothing.
        channels: of the map that it normalizes.
    """
    layer = get_norm(norm, channels) or nn.Identity()
    if isinstance(layer, (_BatchNorm, FrozenBatchNorm2d)):
        layer.eps = 1e-3
    if isinstance(layer, _BatchNorm):
        layer.momentum = 0.01
    return layer


def _by_anchor(x: Tensor, numbers: int) -> Tensor:
    """(B, A · numbers, H, W) to (B, H · W · A, numbers), cell by cell in rows."""
    batch, channels, height, width = x.shape
    anchors = x.view(batch, channels // numbers, numbers, height, width).permute(0, 3, 4, 1, 2)
    return anchors.reshape(batch, -1, numbers)
