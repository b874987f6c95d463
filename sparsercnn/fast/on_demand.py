"""The finest level of a pyramid, whose last convolution is computed only where boxes read it.

That level has three quarters of all pixels. Boxes small enough to read it usually cover a part of the image, and from
stage to stage they hardly move: what one stage has computed the next ones find.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..modeling.detector import SparseRCNN
from ..modeling.roi_routing import FusedPooler, LevelRouting, PixelTable
from .convolution import FastConv2d
from .fusion import FusedFPN
from .winograd import convolve_tiles, tiles_of, transforms_for


def convolve_on_demand(model: SparseRCNN) -> None:
    """Compute the finest level of a prepared model on demand, in place, if only the pooler reads it.

    That is, with detectron2's FPN, whose last convolutions `suits_winograd` finds wide enough, each box reading one
    level, through `FusedPooler`.
    """
    backbone, routing = model.backbone, model.head.routing
    if type(model) is not SparseRCNN or type(backbone) is not FusedFPN or model.in_features[0] != backbone.finest:
        return
    reads_finest = backbone.top_block is not None and backbone.top_block.in_feature == backbone.finest
    is_wide = isinstance(backbone.output[-1], FastConv2d) and backbone.output[-1].is_winograd
    if is_wide and type(routing) is LevelRouting and type(routing.pooler) is FusedPooler and not reads_finest:
        routing.pooler = OnDemandPooler(routing.pooler, backbone.take_finest_output())


@dataclass
class OnDemandTable(PixelTable):
    """Starts with the rows of `finest` (B, C, H, W) convolved, but only in tiles that are `done`, as `tiles_of` counts.

    Tiles are those of Winograd's algorithm, see `convolve_tiles`.
    """

    finest: Tensor
    conv: FastConv2d
    done: Tensor

    def provide(self, index: Tensor) -> None:
        batch, _, height, width = self.finest.shape
        pixels = batch * height * width
        read = index.new_zeros(pixels + 1, dtype=self.finest.dtype)
        read.index_fill_(0, index.flatten().clamp(max=pixels), 1)  # all rows of higher levels as one
        tile = transforms_for(self.finest.dtype).tile
        read = F.max_pool2d(read[:-1].view(batch, height, width), tile, ceil_mode=True).bool()
        missing = (read & ~self.done).nonzero()
        if len(missing):
            convolve_tiles(self.finest, missing, self.conv.weight, self.conv.bias, self.pixels)
            self.done |= read


class OnDemandPooler(FusedPooler):
    """`FusedPooler` of a pyramid whose finest level still lacks its last convolution."""

    def __init__(self, pooler: FusedPooler, conv: FastConv2d):
        super().__init__(
            pooler.strides, pooler.canonical_level, pooler.canonical_size, pooler.resolution, pooler.sampling_ratio
        )
        self.conv = conv

    def prepare(self, features: list[Tensor]) -> OnDemandTable:
        finest, *others = features
        batch, channels, height, width = finest.shape
        rows = [f.permute(0, 2, 3, 1).flatten(0, 2) for f in others]
        start = batch * height * width
        pixels = finest.new_empty(start + sum(map(len, rows)) + 1, channels)
        if rows:
            torch.cat(rows, out=pixels[start:-1])
        done = finest.new_zeros(tiles_of(finest), dtype=torch.bool)
        return OnDemandTable(pixels, self.layout(features), finest, self.conv, done)
