"""Atrous spatial pyramid pooling.

Chen et al., Rethinking Atrous Convolution for Semantic Image Segmentation, 2017, section 3.3.
"""

from collections.abc import Callable
from copy import deepcopy

import fvcore.nn.weight_init as weight_init
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .batch_norm import get_norm
from .blocks import DepthwiseSeparableConv2d
from .wrappers import Conv2d


class ASPP(nn.Module):
    """A 1×1 convolution, three dilated 3×3 convolutions and pooled context, concatenated and projected.

    Args:
        in_channels: channels of the input.
        out_channels: channels of every branch and of the output.
        dilations: the three dilation rates.
        norm: normalisation after every convolution except the pooled branch; a name or callable for `get_norm`.
        activation: activation after every convolution; each gets its own copy.
        pool_kernel_size: (height, width) of the average pool; None pools the whole map. Otherwise the input size
            must be divisible by it.
        dropout: probability of dropout on the output.
        use_depthwise_separable_conv: make the dilated convolutions depthwise-separable.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        dilations: list[int] | tuple[int, ...],
        *,
        norm: str | Callable[[int], nn.Module],
        activation: Callable[[Tensor], Tensor],
        pool_kernel_size: tuple[int, int] | None = None,
        dropout: float = 0.0,
        use_depthwise_separable_conv: bool = False,
    ) -> None:
        super().__init__()
        assert len(dilations) == 3, f"ASPP expects 3 dilations, got {len(dilations)}"
        self.pool_kernel_size = pool_kernel_size
        self.dropout = dropout

        def conv(channels: int, kernel_size: int, dilation: int = 1) -> Conv2d:
            layer = Conv2d(
                channels,
                out_channels,
                kernel_size=kernel_size,
                padding=dilation * (kernel_size // 2),
                dilation=dilation,
                bias=norm == "",
                norm=get_norm(norm, out_channels),
                activation=deepcopy(activation),
            )
            weight_init.c2_xavier_fill(layer)
            return layer

        def dilated(dilation: int) -> nn.Module:
            if not use_depthwise_separable_conv:
                return conv(in_channels, 3, dilation)
            return DepthwiseSeparableConv2d(
                in_channels,
                out_channels,
                kernel_size=3,
                padding=dilation,
                dilation=dilation,
                norm1=norm,
                activation1=deepcopy(activation),
                norm2=norm,
                activation2=deepcopy(activation),
            )

        pool = nn.AdaptiveAvgPool2d(1) if pool_kernel_size is None else nn.AvgPool2d(pool_kernel_size, stride=1)
        # No norm here: with the whole map pooled there is a single value per channel and image.
        pooled_conv = Conv2d(in_channels, out_channels, 1, bias=True, activation=deepcopy(activation))
        weight_init.c2_xavier_fill(pooled_conv)
        self.convs = nn.ModuleList(
            [conv(in_channels, 1), *(dilated(d) for d in dilations), nn.Sequential(pool, pooled_conv)]
        )
        self.project = conv(5 * out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H, W)."""
        size = x.shape[-2:]
        if self.pool_kernel_size is not None and any(s % k for s, k in zip(size, self.pool_kernel_size, strict=True)):
            raise ValueError(
                "`pool_kernel_size` must be divisible by the shape of inputs. "
                f"Input size: {tuple(size)} `pool_kernel_size`: {self.pool_kernel_size}"
            )
        branches = [conv(x) for conv in self.convs]
        branches[-1] = F.interpolate(branches[-1], size=size, mode="bilinear", align_corners=False)
        out = self.project(torch.cat(branches, dim=1))
        return F.dropout(out, self.dropout, training=self.training) if self.dropout > 0 else out
