"""Pooling in training on CPUs: all refinement stages add their gradient of the pyramid to one buffer.

The backward of `embedding_bag` makes a new gradient of the whole pixel table for every stage, and slowly. Here each
stage adds its part, a sparse product, to a buffer that they share, and the table gets it when all stages are through.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ..modeling.pooler import FusedPooler, Pyramid
from ..modeling.roi_routing import LevelRouting


def share_pooling_gradients(model: nn.Module) -> None:
    """On a CPU, replace each `FusedPooler` of a model by a `SharedGradientPooler`, in place."""
    if next(model.parameters()).device.type != "cpu" or not torch.backends.mkl.is_available():
        return
    for module in model.modules():
        if isinstance(module, LevelRouting) and type(module.pooler) is FusedPooler:
            pooler = module.pooler
            module.pooler = SharedGradientPooler(pooler.strides, pooler.resolution, pooler.sampling_ratio)


class SharedGradientPooler(FusedPooler):
    """`FusedPooler` with the same results and gradients, the latter collected in a `SharedGradientPyramid`."""

    def prepare(self, features: Sequence[Tensor]) -> Pyramid:
        return SharedGradientPyramid(features)


class SharedGradientPyramid(Pyramid):
    """`Pyramid` whose sums, where they need gradients, add these to one buffer.

    In half precision, pixels become float32 if they need gradients: many small parts are added up.
    """

    def __init__(self, maps: Sequence[Tensor]):
        super().__init__(maps)
        self._buffer = _Buffer()

    def lay_out(self) -> Tensor:
        pixels = super().lay_out()
        if not (pixels.requires_grad and torch.is_grad_enabled()):
            return pixels
        return _Collect.apply(pixels.to(torch.promote_types(pixels.dtype, torch.float32)), self._buffer)

    def sum_pixels(self, index: Tensor, weight: Tensor) -> Tensor:
        if not (self.pixels.requires_grad and torch.is_grad_enabled()):
            return super().sum_pixels(index, weight)
        return _Sum.apply(self.pixels, index, weight.to(self.pixels.dtype), self._buffer)


class _Buffer:
    """The gradient of the pixel table, as far as stages have added to it."""

    gradient: Tensor | None = None

    def add(self, index: Tensor, weight: Tensor, gradient: Tensor, rows: int) -> None:
        if self.gradient is None:
            self.gradient = gradient.new_zeros(rows, gradient.shape[1])
        matrix = _transpose(index, weight, rows)
        torch.addmm(self.gradient, matrix, gradient.contiguous(), out=self.gradient)

    def take(self) -> Tensor | None:
        gradient, self.gradient = self.gradient, None
        return gradient


class _Collect(torch.autograd.Function):
    """Hands the table on. Its backward runs after that of every sum, and passes on what these have collected."""

    @staticmethod
    def forward(ctx: Any, pixels: Tensor, buffer: _Buffer) -> Tensor:
        ctx.buffer = buffer
        ctx.set_materialize_grads(False)
        return pixels.view_as(pixels)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, elsewhere: Tensor | None) -> tuple[Tensor | None, None]:
        collected = ctx.buffer.take()
        if collected is None or elsewhere is None:
            return elsewhere if collected is None else collected, None
        return collected.add_(elsewhere), None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pixels: Tensor, index: Tensor, weight: Tensor, buffer: _Buffer) -> Tensor:
        ctx.save_for_backward(index, weight)
        ctx.buffer, ctx.rows = buffer, len(pixels)
        return F.embedding_bag(index, pixels, mode="sum", per_sample_weights=weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None, None]:
        ctx.buffer.add(*ctx.saved_tensors, gradient, ctx.rows)
        return None, None, None, None


def _transpose(index: Tensor, weight: Tensor, rows: int) -> Tensor:
    """The sparse (rows, bins) matrix that takes gradients of bins to gradients of rows."""
    flat, order = index.flatten().sort()
    starts = torch.searchsorted(flat, torch.arange(rows + 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that this layout is in beta
        return torch.sparse_csr_tensor(
            starts, order // index.shape[1], weight.flatten()[order], (rows, len(index)), check_invariants=False
        )
