"""Pretended GPUs."""

import pytest

from sparsercnn.fast import row_sums


@pytest.fixture
def like_cuda_and_timed(monkeypatch):
    """Tensors of the CPU are taken for CUDA's."""
    monkeypatch.setattr(row_sums, "_choices", {})
    monkeypatch.setattr(row_sums, "_is_on_cpu", lambda table: False)
    monkeypatch.setattr(row_sums, "_may_use_triton", lambda table: True)


@pytest.fixture
def like_cuda(like_cuda_and_timed, monkeypatch):
    """And the kernels in `sparsercnn.fast.row_sums_triton` win every timing."""
    monkeypatch.setattr(row_sums, "_milliseconds", lambda kernels, *_: 2.0 if kernels is None else 1.0)
