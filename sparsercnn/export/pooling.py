"""RoIAlign in operators that ONNX has: rows are gathered and multiplied by their weights as one batched product."""

from functools import cached_property

import torch
from torch import Tensor

from ..modeling.pooler import FusedPooler, Pooler, Pyramid


class ExportablePyramid(Pyramid):
    """A pyramid whose sizes may be symbols of a graph, and which sums pixels without `embedding_bag`.

    Of the forms that standard operators allow (a batched product, a weighted sum, sums tap by tap, RoiAlign for each
    level) onnxruntime and OpenVINO take the least time for the batched product.
    """

    @cached_property
    def layout(self) -> Tensor:
        rows = [m.shape[0] * m.shape[2] * m.shape[3] for m in self.maps]
        starts = [sum(rows[:i]) for i in range(len(rows))]
        columns = zip(self.maps, starts, strict=True)
        table = [[m.shape[2], m.shape[3], start] for m, start in columns]
        return torch.stack([_stack([column[i] for column in table]) for i in range(3)])

    def sum_pixels(self, index: Tensor, weight: Tensor) -> Tensor:
        return torch.bmm(weight[:, None], self.pixels[index])[:, 0]


class ExportablePooler(FusedPooler):
    """Does what `pooler` does, in operators that can be exported.

    Args:
        pooler: its strides, resolution and sampling ratio are taken over.
    """

    def __init__(self, pooler: Pooler):
        super().__init__(pooler.strides, pooler.resolution, pooler.sampling_ratio)

    def prepare(self, features: list[Tensor]) -> Pyramid:  # type: ignore[override]
        return ExportablePyramid(features)


def _stack(sizes: list) -> Tensor:
    """(L,) int64 of numbers that may be symbols."""
    return torch.stack([torch.scalar_tensor(size, dtype=torch.int64) for size in sizes])
