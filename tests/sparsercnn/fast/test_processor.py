"""Which kernels each kind of processor gets."""

import pytest
import torch
from torch import nn

from sparsercnn import prepare_for_inference
from sparsercnn.fast import processor
from sparsercnn.fast.convolution import FastConv2d
from sparsercnn.fast.processor import has_amx, has_native_bfloat16, has_onednn, winograd_pays

KINDS = {
    "Intel with AMX": ({"avx512f", "avx512_bf16", "amx_tile", "amx_bf16"}, True, True, False),
    "AMD EPYC": ({"avx512f", "avx512_bf16"}, True, False, True),
    "AVX512 alone": ({"avx512f"}, False, False, False),
    "ARM": ({"asimd", "bf16"}, True, False, True),
    "unknown": (set(), False, False, False),
}


@pytest.fixture(params=KINDS)
def kind(request, monkeypatch):
    instructions, *expected = KINDS[request.param]
    monkeypatch.setattr(processor, "instruction_sets", lambda: frozenset(instructions))
    return expected


def test_follows_the_instruction_sets(kind):
    assert [has_native_bfloat16(), has_amx(), winograd_pays(torch.bfloat16)] == kind
    assert winograd_pays(torch.float32) and not winograd_pays(torch.float16)


@pytest.mark.skipif(not has_onednn(torch.bfloat16), reason="needs a CPU that computes in bfloat16")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_prepared_models_follow(kind, dtype):
    network = nn.Sequential(nn.Conv2d(8, 256, 1), nn.Conv2d(256, 256, 3, padding=1))
    convolutions = [m for m in prepare_for_inference(network, dtype).modules() if isinstance(m, FastConv2d)]
    assert [conv.is_winograd for conv in convolutions] == [False, winograd_pays(dtype)]


def test_knows_this_processor():
    assert processor.instruction_sets() or not torch.backends.cpu.get_cpu_capability().startswith("AVX")
