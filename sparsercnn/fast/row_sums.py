"""Weighted sums of table rows, with a backward that suits a large table read several times."""

import functools
import importlib.util
import statistics
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

HALF = (torch.bfloat16, torch.float16)
CALLS = 2
"""On one table, when calls that are differentiable are timed: some costs they share, others are for each."""
WARMUP, REPEATS = 3, 5

_choices: dict[tuple, "Kernels | None"] = {}
"""Of `_fastest`, by device, dtype, channels, rows of a bag, and whether the table is differentiable."""


def differentiable_table(table: Tensor) -> Tensor:
    """The table in the type whose gradients `sum_rows` can add up: float32 in place of half precision.

    Where it would call `embedding_bag` anyway, the table stays as it is.
    """
    chains = _is_on_cpu(table) or _may_use_triton(table)
    return table.float() if table.dtype in HALF and table.requires_grad and chains else table


def sum_rows(table: Tensor, index: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Sum rows of a table into bags.

    The backward of `embedding_bag` makes a new gradient of the whole table at every call, and slowly. The calls on one
    table therefore form a chain: each adds its part to the gradient of the calls after it, in place. On CPUs that part
    is a sparse product. On GPUs, Triton kernels do the work if they turn out faster than `embedding_bag` when both are
    timed, at the first call of a kind; that call waits for the GPU, the others do not. Atomic additions have no fixed
    order, and no two timings are the same: deterministic algorithms exclude both.

    Args:
        table: (P, C), from `differentiable_table`.
        index: (bags, n) int64 rows.
        weight: (bags, n) of each row, in the type of the table; no gradient flows to it.

    Returns:
        The (bags, C) sums, and the table to read in the next call.
    """
    return _sum_rows(_choose(table, index, weight), table, index, weight)


class Kernels(NamedTuple):
    """`sum` (table, index, weight) is a bag's sum without a gradient; `add_transposed` (table_gradient, index, weight,
    gradient) adds to the contiguous gradient of the table, in place, what the gradient of the sums contributes.
    """

    sum: Callable[[Tensor, Tensor, Tensor], Tensor]
    add_transposed: Callable[[Tensor, Tensor, Tensor, Tensor], object]


def _sum_rows(kernels: Kernels | None, table: Tensor, index: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """`sum_rows` by `kernels`, or by `embedding_bag` and its own backward."""
    if kernels is None:
        return _embedding_bag(table, index, weight), table
    if _is_differentiable(table):
        return _ChainedSum.apply(table, index, weight, kernels)
    return kernels.sum(table, index, weight), table


class _ChainedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, table: Tensor, index: Tensor, weight: Tensor, kernels: Kernels) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(index, weight)
        ctx.kernels = kernels
        ctx.rows = len(table)
        ctx.set_materialize_grads(False)
        return kernels.sum(table, index, weight), table

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor | None, later: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        if gradient is None:
            return later, None, None, None
        later = gradient.new_zeros(ctx.rows, gradient.shape[1]) if later is None else later.contiguous()
        ctx.kernels.add_transposed(later, *ctx.saved_tensors, gradient)
        return later, None, None, None


def _is_differentiable(table: Tensor) -> bool:
    return table.requires_grad and torch.is_grad_enabled()


def _embedding_bag(table: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    return F.embedding_bag(index, table, mode="sum", per_sample_weights=weight)


def _is_on_cpu(table: Tensor) -> bool:
    """And there are MKL's sparse products."""
    return table.device.type == "cpu" and torch.backends.mkl.is_available()


def _add_sparse_product(table_gradient: Tensor, index: Tensor, weight: Tensor, gradient: Tensor) -> None:
    matrix = _transpose(index, weight, len(table_gradient))
    torch.addmm(table_gradient, matrix, gradient.contiguous(), out=table_gradient)


def _transpose(index: Tensor, weight: Tensor, rows: int) -> Tensor:
    """The sparse (rows, bags) matrix that takes gradients of bags to gradients of rows."""
    flat, order = index.flatten().sort()
    starts = torch.searchsorted(flat, torch.arange(rows + 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that this layout is in beta
        return torch.sparse_csr_tensor(
            starts, order // index.shape[1], weight.flatten()[order], (rows, len(index)), check_invariants=False
        )


CPU_KERNELS = Kernels(_embedding_bag, _add_sparse_product)


def _choose(table: Tensor, index: Tensor, weight: Tensor) -> Kernels | None:
    if _is_on_cpu(table):
        return CPU_KERNELS
    differentiable = _is_differentiable(table)
    # The chain's gradient has the type of the table, and sums of many parts need float32.
    types = (torch.float32,) if differentiable else (torch.float32, *HALF)
    if not _may_use_triton(table) or table.dtype not in types or not index.numel() or not table.numel():
        return None
    key = (table.device, table.dtype, table.shape[1], index.shape[1], differentiable)
    if key not in _choices:
        _choices[key] = _fastest(table, index, weight)
    return _choices[key]


def _may_use_triton(table: Tensor) -> bool:
    return table.is_cuda and _has_triton() and not torch.are_deterministic_algorithms_enabled()


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _fastest(table: Tensor, index: Tensor, weight: Tensor) -> Kernels | None:
    """Triton's kernels if they are faster here, or None for `embedding_bag`."""
    try:
        from . import row_sums_triton

        kernels = Kernels(row_sums_triton.sum_rows, row_sums_triton.add_transposed)
        ours = _milliseconds(kernels, table, index, weight)
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # Triton compiles for this GPU with the machine's C compiler: much can be missing
        warnings.warn(f"Triton does not work here, so embedding_bag sums the rows: {error}", stacklevel=2)
        return None
    return kernels if ours < _milliseconds(None, table, index, weight) else None


def _milliseconds(kernels: Kernels | None, table: Tensor, index: Tensor, weight: Tensor) -> float:
    """Median time of sums, and of their backward if the table is differentiable."""

    def run() -> None:
        if not _is_differentiable(table):
            _sum_rows(kernels, table, index, weight)
            return
        leaf = alias = table.detach().requires_grad_()
        outputs = []
        for _ in range(CALLS):
            sums, alias = _sum_rows(kernels, alias, index, weight)
            outputs.append(sums)
        torch.autograd.grad(outputs, leaf, [torch.ones_like(sums) for sums in outputs])

    # Hooks on saved tensors, such as those of gradient checkpointing, are for the caller's graph only.
    with torch.cuda.device_of(table), torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(WARMUP + REPEATS)]
        for start, end in events:
            start.record()
            run()
            end.record()
        end.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in events[WARMUP:])
