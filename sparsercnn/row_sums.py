"""Weighted sums of table rows, with a backward that suits a large table read several times."""

import warnings

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def differentiable_table(table: Tensor) -> Tensor:
    """The table in a type whose sums have a fast backward: on CPUs float32 in place of half precision."""
    is_half = table.dtype in (torch.bfloat16, torch.float16)
    return table.float() if is_half and table.requires_grad and _is_on_cpu(table) else table


def sum_rows(table: Tensor, index: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Sum rows of a table into bags.

    The backward of `embedding_bag` makes a new gradient of the whole table at every call, and slowly. On CPUs the calls
    on one table therefore form a chain: each adds a sparse product to the gradient of the calls after it, in place.

    Args:
        table: (P, C).
        index: (bags, n) int64 rows.
        weight: (bags, n) of each row, in the type of the table; no gradient flows to it.

    Returns:
        The (bags, C) sums, and the table to read in the next call.
    """
    if table.requires_grad and torch.is_grad_enabled() and _is_on_cpu(table):
        return _ChainedSum.apply(table, index, weight)
    return _sum(table, index, weight), table


def _sum(table: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    return F.embedding_bag(index, table, mode="sum", per_sample_weights=weight)


def _is_on_cpu(table: Tensor) -> bool:
    """And there are MKL's sparse products."""
    return table.device.type == "cpu" and torch.backends.mkl.is_available()


class _ChainedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, table: Tensor, index: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(index, weight)
        ctx.rows = len(table)
        ctx.set_materialize_grads(False)
        return _sum(table, index, weight), table

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor | None, later: Tensor | None) -> tuple[Tensor | None, None, None]:
        if gradient is None:
            return later, None, None
        index, weight = ctx.saved_tensors
        if later is None:
            later = gradient.new_zeros(ctx.rows, gradient.shape[1])
        return torch.addmm(later, _transpose(index, weight, ctx.rows), gradient.contiguous(), out=later), None, None


def _transpose(index: Tensor, weight: Tensor, rows: int) -> Tensor:
    """The sparse (rows, bags) matrix that takes gradients of bags to gradients of rows."""
    flat, order = index.flatten().sort()
    starts = torch.searchsorted(flat, torch.arange(rows + 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that this layout is in beta
        return torch.sparse_csr_tensor(
            starts, order // index.shape[1], weight.flatten()[order], (rows, len(index)), check_invariants=False
        )
