"""Sums of table rows: Triton's kernels without a GPU (interpreted, and compiled ahead of time), and the chain of calls
that share a gradient.
"""

import importlib
import importlib.util
import inspect
import re
import sys

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import sparsercnn
from sparsercnn.fast import row_sums
from sparsercnn.modeling.roi_routing import DetectronPooler, FusedPooler

from ..modeling.test_roi_routing import STRIDES, pyramid, random_boxes

KERNELS = "sparsercnn.fast.row_sums_triton"
TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def import_kernels(monkeypatch, interpret: bool):
    """A fresh import of the kernels, for this test only: Triton asks where a kernel is defined whether to interpret."""
    monkeypatch.setenv("TRITON_INTERPRET", str(int(interpret)))
    # Later imports must find what was there before: setting and deleting makes monkeypatch remember both places.
    monkeypatch.setitem(sys.modules, KERNELS, None)
    monkeypatch.delitem(sys.modules, KERNELS)
    monkeypatch.setattr(sparsercnn, "row_sums_triton", None, raising=False)
    return importlib.import_module(KERNELS)


@pytest.fixture
def interpreted(monkeypatch):
    return import_kernels(monkeypatch, interpret=True)


@pytest.fixture(params=["cpu", pytest.param("triton", marks=needs_triton)])
def each_chain(request):
    if request.param == "triton":
        request.getfixturevalue("interpreted")
        request.getfixturevalue("like_cuda")


def plain(table, index, weight):
    return (table[index] * weight[..., None]).sum(1)


def problem(channels, taps, bags=5, rows=11, dtype=torch.float32, seed=0):
    """Few rows, so that bags share them and read some twice; a fifth of the weights is zero."""
    torch.manual_seed(seed)
    table = torch.randn(rows, channels).to(dtype)
    weight = F.dropout(torch.rand(bags, taps), 0.2).to(dtype)
    return table, torch.randint(rows, (bags, taps)), weight


@needs_triton
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("channels, taps", [(1, 4), (8, 16), (100, 36), (256, 16), (300, 4)])
def test_kernel_sums(interpreted, channels, taps, dtype):
    table, index, weight = problem(channels, taps, dtype=dtype)
    sums = interpreted.sum_rows(table, index, weight)
    assert sums.dtype == dtype
    assert_close(sums, plain(table.double(), index, weight.double()).to(dtype))
    assert_close(sums, F.embedding_bag(index, table, mode="sum", per_sample_weights=weight), atol=1e-2, rtol=2e-2)


@needs_triton
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("channels, taps", [(1, 4), (8, 16), (100, 36), (256, 16), (300, 4)])
def test_kernel_gradients(interpreted, channels, taps, dtype):
    table, index, weight = problem(channels, taps, dtype=dtype)
    before = torch.randn(table.shape)
    gradient = torch.randn(channels, len(index)).to(dtype).t()
    ours = before.clone()
    interpreted.add_transposed(ours, index, weight, gradient)
    for sum_rows in (plain, row_sums._embedding_bag):
        leaf = table.float().requires_grad_()
        (expected,) = torch.autograd.grad(sum_rows(leaf, index, weight.float()), leaf, gradient.float())
        assert_close(ours, before + expected, atol=1e-4, rtol=1e-4)


@needs_triton
def test_kernels_take_any_strides(interpreted):
    table, index, weight = problem(8, 4)
    expected = interpreted.sum_rows(table, index, weight)
    strided = [torch.stack([t, t], dim=-1)[..., 0] for t in (table, index, weight)]
    assert torch.equal(interpreted.sum_rows(*strided), expected)
    gradients = [torch.zeros_like(table) for _ in range(2)]
    interpreted.add_transposed(gradients[0], index, weight, expected)
    interpreted.add_transposed(gradients[1], *strided[1:], torch.stack([expected, expected], dim=-1)[..., 0])
    assert torch.equal(*gradients)


@needs_triton
def test_sums_stay_in_their_memory(interpreted):
    table, index, weight = problem(100, 4)
    memory = torch.full((len(index) + 2, 100), torch.nan)
    interpreted._launch(interpreted._sum_rows, table, index, weight, memory[1:-1])
    assert memory[[0, -1]].isnan().all() and memory[1:-1].isfinite().all()


@needs_triton
@pytest.mark.parametrize("rows, channels, bags", [(11, 8, 0), (0, 8, 0), (11, 0, 5)])
def test_kernels_without_work(interpreted, monkeypatch, rows, channels, bags):
    """A GPU cannot launch a grid without programs, which the interpreter would not mind."""
    for kernel in ("_sum_rows", "_add_transposed"):
        monkeypatch.setattr(interpreted, kernel, None)
    table, index, weight = torch.randn(rows, channels), torch.zeros(bags, 4, dtype=torch.long), torch.zeros(bags, 4)
    assert interpreted.sum_rows(table, index, weight).shape == (bags, channels)
    interpreted.add_transposed(torch.zeros_like(table), index, weight, torch.zeros(bags, channels))


@needs_triton
@pytest.mark.parametrize("dtype", TYPES.values())
@pytest.mark.parametrize("kernel", ["_sum_rows", "_add_transposed"])
@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_for_gpus(monkeypatch, tmp_path, capability, kernel, dtype):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if not {"fn", "signature", "constexprs"} <= set(inspect.signature(ASTSource).parameters):
        pytest.skip("this Triton describes sources in another way")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    table = dtype if kernel == "_sum_rows" else "fp32"
    constants = {"CHANNELS": 100, "TAPS": 16, "BLOCK": 128}
    signature = {"table": f"*{table}", "index": "*i64", "weight": f"*{dtype}", "sums": f"*{dtype}"}
    source = ASTSource(
        fn=getattr(import_kernels(monkeypatch, interpret=False), kernel),
        signature=signature | dict.fromkeys(constants, "constexpr"),
        constexprs=constants,
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    assert f".target sm_{capability}" in compiled.asm["ptx"] and compiled.asm["cubin"]
    # Positions may be beyond int32: only the first channel of a program is computed in it.
    assert len(re.findall(r"arith\.muli .*i32", compiled.asm["ttir"])) == 1


def chained(table, index, weight, calls):
    outputs = []
    for i in range(calls):
        sums, table = row_sums.sum_rows(table, index.roll(i, 0), weight)
        outputs.append(sums)
    return tuple(outputs)


def loss(outputs, used):
    """Its gradient reaches the sums transposed."""
    factors = torch.randn(outputs[0].t().shape, generator=torch.Generator().manual_seed(1))
    return sum((outputs[i].t() * factors).square().sum() for i in used)


@pytest.mark.parametrize("used", [range(6), [1, 2, 4], [0], [5]])
def test_chain_equals_plain_indexing(each_chain, used):
    table, index, weight = problem(8, 4)
    leaf, exact = table.clone().requires_grad_(), table.clone().requires_grad_()
    outputs = chained(leaf, index, weight, 6)
    expected = [plain(exact, index.roll(i, 0), weight) for i in range(6)]
    assert "ChainedSum" in type(outputs[0].grad_fn).__name__
    assert_close(outputs, tuple(expected))
    loss(outputs, used).backward()
    loss(expected, used).backward()
    assert_close(leaf.grad, exact.grad)


def test_two_chains_on_one_table(each_chain):
    table, index, weight = problem(8, 4)
    leaf, exact = table.clone().requires_grad_(), table.clone().requires_grad_()
    loss(chained(leaf, index, weight, 3) + chained(leaf, index, weight, 2), range(5)).backward()
    expected = [plain(exact, index.roll(i, 0), weight) for i in (0, 1, 2, 0, 1)]
    loss(expected, range(5)).backward()
    assert_close(leaf.grad, exact.grad)


def test_chain_adds_to_gradients_from_elsewhere(each_chain):
    """Such as the one that `sum` gives back, all of whose elements share their memory."""
    table, index, weight = problem(8, 4)
    leaf, exact = table.clone().requires_grad_(), table.clone().requires_grad_()
    sums, last = row_sums.sum_rows(leaf, index, weight)
    assert last.data_ptr() == leaf.data_ptr()
    (sums.sum() + last.sum()).backward()
    (plain(exact, index, weight).sum() + exact.sum()).backward()
    assert_close(leaf.grad, exact.grad)


@pytest.mark.parametrize("reentrant", [False, True])
def test_chain_with_gradient_checkpointing(each_chain, reentrant):
    table, index, weight = problem(8, 4)
    leaf, exact = table.clone().requires_grad_(), table.clone().requires_grad_()
    loss(checkpoint(chained, leaf, index, weight, 3, use_reentrant=reentrant), range(3)).backward()
    loss([plain(exact, index.roll(i, 0), weight) for i in range(3)], range(3)).backward()
    assert_close(leaf.grad, exact.grad)


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_pooler_on_triton_kernels(interpreted, like_cuda, dtype):
    features, boxes = [f.to(dtype) for f in pyramid(size=(16, 24))], random_boxes(2, 2, 96, 64)
    outputs, gradients = [], []
    for pooler in (FusedPooler(STRIDES, resolution=3), DetectronPooler(STRIDES, resolution=3)):
        leaves = [f.clone().requires_grad_() for f in features]
        maps = leaves if isinstance(pooler, FusedPooler) else [f.float() for f in leaves]
        table = pooler.prepare(maps)
        pooled = torch.cat([pooler.pool(table, b) for b in (boxes, boxes.flip(1))])
        assert pooled.dtype == torch.float32
        pooled.square().sum().backward()
        outputs.append(pooled)
        gradients.append([f.grad for f in leaves])
    assert list(row_sums._choices) == [(features[0].device, torch.float32, 8, 16, True)]
    assert_close(*outputs, rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(*gradients, strict=True):
        assert ours.dtype == dtype
        assert_close(ours, theirs, **({"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {}))
