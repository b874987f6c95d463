"""The finest level of a pyramid, whose last convolution is computed only where boxes read it.

That level has three quarters of all pixels. Boxes small enough to read it usually cover a part of the image, and from
stage to stage they hardly move: what one stage has computed the next ones find.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from ..modeling.detector import SparseRCNN
from ..modeling.roi_routing import FusedPooler, LevelRouting, PixelTable
from .calls import is_call_of
from .convolution import FastConv2d
from .tracing import TracedBackbone
from .winograd import convolve_tiles, tiles_of, transforms_for


def convolve_on_demand(model: SparseRCNN) -> None:
    """Compute the finest level of a prepared model on demand, in place, if only the pooler reads it.

    That is, if its last operation is a convolution that goes through `winograd`, and each box reads one level, through
    `FusedPooler`.
    """
    routing = model.head.routing
    reads_one_level = type(routing) is LevelRouting and type(routing.pooler) is FusedPooler
    if type(model) is SparseRCNN and reads_one_level and isinstance(model.backbone, TracedBackbone):
        conv = take_last_convolution(model.backbone.traced, model.in_features[0])
        if conv is not None:
            routing.pooler = OnDemandPooler(routing.pooler, conv)


def take_last_convolution(traced: fx.GraphModule, name: str) -> FastConv2d | None:
    """Let a graph return one of its named maps as it is before its last convolution, which is returned.

    Only if that is a convolution by `winograd` and nothing else, and nothing in the graph reads its result. None if not.
    """
    output = next(node for node in traced.graph.nodes if node.op == "output")
    maps = output.args[0]
    last = maps[name] if isinstance(maps, dict) else None
    if last is None or not is_call_of(last, FastConv2d) or len(last.args) != 1 or last.kwargs:
        return None
    conv = traced.get_submodule(last.target)
    if not conv.is_winograd or list(last.users) != [output] or list(maps.values()).count(last) != 1:
        return None
    last.replace_all_uses_with(last.args[0])
    traced.graph.erase_node(last)
    traced.recompile()
    return conv


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
