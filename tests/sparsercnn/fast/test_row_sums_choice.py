"""Sums of table rows: which kernels do them on GPUs, chosen by timing."""

from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import sparsercnn
from sparsercnn.fast import row_sums

from .test_row_sums import chained, loss, plain, problem


@pytest.fixture
def reference_kernels(monkeypatch):
    """In place of Triton's: plain ones that count their calls, and the additions to what another has added."""
    kernels = SimpleNamespace(sums=0, additions=0, continuations=0)

    def sum_rows(table, index, weight):
        kernels.sums += 1
        return plain(table, index, weight)

    def add_transposed(table_gradient, index, weight, gradient):
        kernels.additions += 1
        kernels.continuations += bool(table_gradient.any())
        parts = weight[..., None] * gradient[:, None]
        table_gradient.index_add_(0, index.flatten(), parts.flatten(0, 1))

    kernels.sum_rows, kernels.add_transposed = sum_rows, add_transposed
    monkeypatch.setattr(sparsercnn, "row_sums_triton", kernels, raising=False)
    return kernels


def test_one_choice_for_each_kind_of_call(like_cuda, monkeypatch):
    made = []
    monkeypatch.setattr(row_sums, "_fastest", lambda *args: made.append(args))  # None: embedding_bag
    table, index, weight = problem(8, 4)

    def call(table=table, index=index, weight=weight):
        row_sums.sum_rows(table, index, weight.to(table.dtype))
        return len(made)

    assert call() == call() == call(index=index[:2], weight=weight[:2]) == call(table=torch.cat([table, table])) == 1
    assert call(table=table.bfloat16()) == call(table=table.bfloat16()) == 2
    assert call(table=table[:, :4]) == 3
    assert call(index=index[:, :2], weight=weight[:, :2]) == 4
    leaf = table.clone().requires_grad_()
    assert call(table=leaf) == call(table=leaf) == 5
    with torch.no_grad():
        assert call(table=leaf) == 5


@pytest.mark.parametrize("dtype, is_leaf", [(torch.float64, False), (torch.bfloat16, True)])
def test_kinds_of_call_without_a_choice(like_cuda, monkeypatch, dtype, is_leaf):
    monkeypatch.setattr(row_sums, "_fastest", None)
    table, index, weight = problem(8, 4, dtype=dtype)
    sums, _ = row_sums.sum_rows(table.requires_grad_(is_leaf), index, weight)
    assert sums.dtype == dtype and sums.requires_grad == is_leaf


def test_nothing_is_timed_on_empty_calls(like_cuda, monkeypatch):
    monkeypatch.setattr(row_sums, "_fastest", None)
    table, index, weight = problem(8, 4)
    assert row_sums.sum_rows(table, index[:0], weight[:0])[0].shape == (0, 8)
    assert row_sums.sum_rows(table[:0], index[:0], weight[:0])[0].shape == (0, 8)


@pytest.mark.parametrize("ours, theirs", [(1.0, 2.0), (2.0, 1.0)])
def test_the_faster_is_chosen(reference_kernels, like_cuda, monkeypatch, ours, theirs):
    monkeypatch.setattr(row_sums, "_milliseconds", lambda kernels, *_: theirs if kernels is None else ours)
    args = problem(8, 4)
    sums, _ = row_sums.sum_rows(*args)
    assert reference_kernels.sums == (ours < theirs)
    assert_close(sums, plain(*args))


def test_a_triton_that_fails_is_not_chosen(reference_kernels, like_cuda, monkeypatch):
    def fail(kernels, *_):
        raise error

    monkeypatch.setattr(row_sums, "_milliseconds", fail)
    args = problem(8, 4)
    error = torch.cuda.OutOfMemoryError()
    with pytest.raises(torch.cuda.OutOfMemoryError):
        row_sums.sum_rows(*args)
    error = RuntimeError("no C compiler")
    with pytest.warns(UserWarning, match="no C compiler"):
        sums, _ = row_sums.sum_rows(*args)
    assert_close(sums, plain(*args))
    assert row_sums.sum_rows(*args)  # asks no more, warns no more


def test_triton_needs_cuda_and_no_promise_of_determinism(monkeypatch):
    on_cuda = SimpleNamespace(is_cuda=True)
    monkeypatch.setattr(row_sums, "_has_triton", lambda: True)
    assert row_sums._may_use_triton(on_cuda)
    assert not row_sums._may_use_triton(torch.zeros(1))
    torch.use_deterministic_algorithms(True)
    try:
        assert not row_sums._may_use_triton(on_cuda)
    finally:
        torch.use_deterministic_algorithms(False)
    monkeypatch.setattr(row_sums, "_has_triton", lambda: False)
    assert not row_sums._may_use_triton(on_cuda)


def test_half_precision_tables_become_float32_for_a_chain_only(like_cuda, monkeypatch):
    half = torch.zeros(2, 2, dtype=torch.bfloat16)
    assert row_sums.differentiable_table(half) is half
    half.requires_grad_()
    assert row_sums.differentiable_table(half).dtype == torch.float32
    monkeypatch.setattr(row_sums, "_may_use_triton", lambda table: False)
    assert row_sums.differentiable_table(half) is half


class FakeEvent:
    """Of CUDA; a pair of them takes one of the times."""

    times: list[float] = []

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.is_recorded = True

    def synchronize(self):
        assert self.is_recorded

    def elapsed_time(self, end):
        assert self.is_recorded and end.is_recorded
        return self.times.pop()


@pytest.fixture
def fake_events(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    return FakeEvent


@pytest.mark.parametrize("is_leaf", [True, False])
def test_timing_covers_what_the_call_will_do(reference_kernels, fake_events, monkeypatch, is_leaf):
    monkeypatch.setattr(FakeEvent, "times", [9.0, 1.0, 3.0, 2.0, 8.0])
    table, index, weight = problem(8, 4)
    table.requires_grad_(is_leaf)
    kernels = row_sums.Kernels(reference_kernels.sum_rows, reference_kernels.add_transposed)
    assert row_sums._milliseconds(kernels, table, index, weight) == 3
    runs = row_sums.WARMUP + row_sums.REPEATS
    assert reference_kernels.sums == runs * (row_sums.CALLS if is_leaf else 1)
    assert reference_kernels.additions == (reference_kernels.sums if is_leaf else 0)
    assert reference_kernels.continuations == (runs * (row_sums.CALLS - 1) if is_leaf else 0)
    assert table.grad is None


@pytest.mark.parametrize("reentrant", [False, True])
def test_timing_within_gradient_checkpointing(
    reference_kernels, like_cuda_and_timed, fake_events, monkeypatch, reentrant
):
    """It is in the first pass only, and leaves no trace among the tensors that the second must save again."""
    monkeypatch.setattr(FakeEvent, "times", ([2.0] * row_sums.REPEATS + [1.0] * row_sums.REPEATS) * 2)
    table, index, weight = problem(8, 4)
    leaf, exact = table.clone().requires_grad_(), table.clone().requires_grad_()
    loss(checkpoint(chained, leaf, index, weight, 3, use_reentrant=reentrant), range(3)).backward()
    loss([plain(exact, index.roll(i, 0), weight) for i in range(3)], range(3)).backward()
    assert_close(leaf.grad, exact.grad)
    assert reference_kernels.additions == row_sums.CALLS * (row_sums.WARMUP + row_sums.REPEATS) + 3
