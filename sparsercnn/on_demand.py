"""The finest level of a pyramid, whose last convolution is computed only where boxes read it.

That level has three quarters of all pixels. Boxes small enough to read it usually cover a part of the image, and from
stage to stage they hardly move: what one stage has computed the next ones find.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .convolution import FastConv2d
from .detector import SparseRCNN
from .fusion import FusedFPN
from .packed_linear import PackedLinear
from .roi_routing import FusedPooler, LevelRouting, PixelTable
from .winograd import TILE, convolve_tiles, window_rows

PIXELS_AT_ONCE = 2048
"""Their windows then take less than 32 MiB. For more, the C library would map fresh memory in every step."""
MAX_SHARE = 0.7
"""Of the level: to compute more blocks one by one takes longer than to compute all together."""


def convolve_on_demand(model: SparseRCNN) -> None:
    """Compute the finest level of a prepared model on demand, in place, if only the pooler reads it.

    That is, with detectron2's FPN, each box reading one level, through `FusedPooler`.
    """
    backbone, routing = model.backbone, model.head.routing
    if type(model) is not SparseRCNN or type(backbone) is not FusedFPN or model.in_features[0] != backbone.finest:
        return
    reads_finest = backbone.top_block is not None and backbone.top_block.in_feature == backbone.finest
    if type(routing) is LevelRouting and type(routing.pooler) is FusedPooler and not reads_finest:
        routing.pooler = OnDemandPooler(routing.pooler, backbone.take_finest_output())


class OnDemandConv2d(nn.Module):
    """A 3×3 convolution of stride 1 and padding 1 at some pixels of a map.

    Args:
        conv: computes all pixels. Where it uses Winograd's algorithm, some pixels are blocks of 4×4.
    """

    def __init__(self, conv: FastConv2d):
        super().__init__()
        self.whole = conv
        self.block = TILE if conv.is_winograd else 1
        if not conv.is_winograd:
            self.product = PackedLinear(conv.weight.permute(0, 2, 3, 1).flatten(1), conv.bias, PIXELS_AT_ONCE)

    def forward(self, x: Tensor, blocks: Tensor, out: Tensor) -> None:
        """
        Args:
            x: (B, C, H, W), channels-last.
            blocks: (n, 3) image, row and column of those to compute, counted in blocks.
            out: at least B·H·W + 1 rows of O channels, see `convolve_tiles`.
        """
        if self.whole.is_winograd:
            convolve_tiles(x, blocks, self.whole.weight, self.whole.bias, out)
        else:
            self._convolve_pixels(x, blocks, out)

    def _convolve_pixels(self, x: Tensor, pixels: Tensor, out: Tensor) -> None:
        rows_of_x = x.permute(0, 2, 3, 1).flatten(0, 2)
        for some in pixels.split(PIXELS_AT_ONCE):
            rows, inside = (t.permute(2, 0, 1).flatten(1) for t in window_rows(some, 3, x.shape))
            windows = rows_of_x.index_select(0, rows.flatten())
            windows.index_fill_(0, (~inside.flatten()).nonzero()[:, 0], 0)
            out.index_copy_(0, rows[:, 4], self.product(windows.view(len(some), -1)))


@dataclass
class OnDemandTable(PixelTable):
    """Starts with the rows of `finest` (B, C, H, W) convolved, but only in blocks that are `done`, (B, H', W') bool."""

    finest: Tensor
    conv: OnDemandConv2d
    done: Tensor

    def provide(self, index: Tensor) -> None:
        batch, _, height, width = self.finest.shape
        pixels = batch * height * width
        read = index.new_zeros(pixels + 1, dtype=self.finest.dtype)
        read.index_fill_(0, index.flatten().clamp(max=pixels), 1)  # all rows of higher levels as one
        read = F.max_pool2d(read[:-1].view(batch, height, width), self.conv.block, ceil_mode=True).bool()
        missing = (read & ~self.done).nonzero()
        if len(missing) > MAX_SHARE * self.done.numel():
            self.pixels[:pixels] = self.conv.whole(self.finest).permute(0, 2, 3, 1).flatten(0, 2)
            self.done.fill_(True)
        elif len(missing):
            self.conv(self.finest, missing, self.pixels)
            self.done |= read


class OnDemandPooler(FusedPooler):
    """`FusedPooler` of a pyramid whose finest level still lacks its last convolution."""

    def __init__(self, pooler: FusedPooler, conv: FastConv2d):
        super().__init__(
            pooler.strides, pooler.canonical_level, pooler.canonical_size, pooler.resolution, pooler.sampling_ratio
        )
        self.conv = OnDemandConv2d(conv)

    def prepare(self, features: list[Tensor]) -> OnDemandTable:
        finest, *others = features
        batch, channels, height, width = finest.shape
        rows = [f.permute(0, 2, 3, 1).flatten(0, 2) for f in others]
        start = batch * height * width
        pixels = finest.new_empty(start + sum(map(len, rows)) + 1, channels)
        if rows:
            torch.cat(rows, out=pixels[start:-1])
        done = torch.zeros(batch, -(-height // self.conv.block), -(-width // self.conv.block), dtype=torch.bool)
        return OnDemandTable(pixels, self.layout(features), finest, self.conv, done)
