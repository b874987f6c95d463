"""The finest level of a pyramid, whose last convolution is computed only where boxes read it.

That level has three quarters of all pixels. Boxes small enough to read it usually cover a part of the image, and from
stage to stage they hardly move: what one stage has computed the next ones find.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from ..modeling.detector import SparseRCNN
from ..modeling.pooler import FusedPooler, Pyramid
from ..modeling.roi_routing import LevelRouting
from .calls import called_module
from .convolution import FastConv2d
from .tracing import TracedBackbone
from .winograd import convolve_tiles, tiles_of, transforms_for


def convolve_on_demand(model: SparseRCNN) -> None:
    """Compute the finest level of a prepared model on demand, in place, if only the pooler reads it.

    That is, if its last operation is a convolution that goes through `winograd`, and each box reads one level, through
    `FusedPooler`.
    """
    routing, backbone = model.head.routing, model.backbone
    if type(model) is not SparseRCNN or type(routing) is not LevelRouting:
        return
    if model.dense_queries is not None and model.in_features[0] in model.dense_queries.in_features:
        return
    pooler = routing.pooler
    if isinstance(pooler, FusedPooler) and isinstance(backbone, TracedBackbone):
        conv = take_last_convolution(backbone.traced, model.in_features[0])
        if conv is not None:
            routing.pooler = OnDemandPooler(pooler, conv)


def take_last_convolution(traced: fx.GraphModule, name: str) -> FastConv2d | None:
    """Let a graph return one of its named maps as it is before its last convolution, which is returned.

    Only if that is a convolution by `winograd` and nothing else, and nothing in the graph reads its result; else None.
    """
    output = next(node for node in traced.graph.nodes if node.op == "output")
    maps = output.args[0]
    if not isinstance(maps, dict):
        return None
    last = maps[name]
    conv = called_module(last, FastConv2d)
    if conv is None or not conv.is_winograd or len(last.args) != 1 or last.kwargs:
        return None
    if list(last.users) != [output] or list(maps.values()).count(last) != 1:
        return None
    last.replace_all_uses_with(last.args[0])
    traced.graph.erase_node(last)
    traced.recompile()
    return conv


class OnDemandPyramid(Pyramid):
    """A pyramid whose finest map still lacks its last convolution: `pixels` has it in tiles that have been read.

    Tiles are those of Winograd's algorithm, see `convolve_tiles`.

    Args:
        maps: (B, C, H, W) of each level, lowest first, in the type of the convolution; the first is its input.
        conv: the convolution, by `winograd`.
    """

    def __init__(self, maps: Sequence[Tensor], conv: FastConv2d):
        super().__init__(maps)
        self.conv = conv
        self.done = self.maps[0].new_zeros(tiles_of(self.maps[0]), dtype=torch.bool)

    def lay_out(self) -> Tensor:
        finest, *others = self.maps
        rows = [m.permute(0, 2, 3, 1).flatten(0, 2) for m in others]
        start = finest.shape[0] * finest.shape[2] * finest.shape[3]
        pixels = finest.new_empty(start + sum(map(len, rows)) + 1, finest.shape[1])
        if rows:
            torch.cat(rows, out=pixels[start:-1])
        return pixels

    def sum_pixels(self, index: Tensor, weight: Tensor) -> Tensor:
        self._convolve(index)
        return super().sum_pixels(index, weight)

    def _convolve(self, index: Tensor) -> None:
        """Fill in the tiles of these rows of `pixels` that are missing."""
        finest = self.maps[0]
        batch, _, height, width = finest.shape
        count = batch * height * width
        read = index.new_zeros(count + 1, dtype=finest.dtype)
        read.index_fill_(0, index.flatten().clamp(max=count), 1)  # all rows of higher levels as one
        tile = transforms_for(finest.dtype).tile
        read = F.max_pool2d(read[:-1].view(batch, height, width), tile, ceil_mode=True).bool()
        missing = (read & ~self.done).nonzero()
        if len(missing):
            convolve_tiles(finest, missing, self.conv.weight, self.conv.bias, self.pixels)
            self.done |= read


class OnDemandPooler(FusedPooler):
    """`FusedPooler` of a pyramid whose finest level still lacks its last convolution.

    Args:
        pooler: gives strides, resolution and sampling ratio.
        conv: the convolution, by `winograd`.
    """

    def __init__(self, pooler: FusedPooler, conv: FastConv2d):
        super().__init__(pooler.strides, pooler.resolution, pooler.sampling_ratio)
        self.conv = conv

    def prepare(self, features: Sequence[Tensor]) -> OnDemandPyramid:
        return OnDemandPyramid([m.to(self.conv.dtype) for m in features], self.conv)
