"""What this processor can do, and which kernels follow from that: fixed rules, no timing at run time.

| processor | float32 | bfloat16 |
| --- | --- | --- |
| x86 with AMX (Intel since Sapphire Rapids) | oneDNN, Winograd | oneDNN: its tiles leave Winograd nothing to save |
| x86 with AVX512-bf16 (AMD EPYC since Zen 4) | oneDNN, Winograd | oneDNN, Winograd |
| others that oneDNN knows | oneDNN, Winograd | oneDNN, which converts |
| no oneDNN in this build of PyTorch | PyTorch's kernels | PyTorch's kernels |
"""

import functools
from pathlib import Path

import torch

# As Linux names them, on x86 and on ARM.
NATIVE_BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}


@functools.cache
def instruction_sets() -> frozenset[str]:
    """Names of the instruction sets that the processor has, as Linux lists them; none on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    lists = (line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features")))
    return frozenset(next(lists, ()))


def has_native_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 itself, rather than convert it to float32 and back."""
    return not NATIVE_BFLOAT16.isdisjoint(instruction_sets())


def has_amx() -> bool:
    """Whether the processor multiplies tiles of bfloat16 matrices (Intel's Advanced Matrix Extensions)."""
    return "amx_bf16" in instruction_sets()


def winograd_pays(dtype: torch.dtype) -> bool:
    """Whether `winograd_conv2d` takes less time than oneDNN's own convolution of wide layers, in this precision."""
    if dtype == torch.bfloat16:
        return has_native_bfloat16() and not has_amx()
    return dtype == torch.float32


@functools.cache
def has_onednn(dtype: torch.dtype) -> bool:
    """Whether oneDNN is there and computes in `dtype` on this processor."""
    if not torch.backends.mkldnn.is_available():
        return False
    pixel, row = torch.zeros(1, 1, 1, 1, dtype=dtype), torch.zeros(1, 1, dtype=dtype)
    try:
        torch.ops.mkldnn._convolution_pointwise(pixel, pixel, None, [0, 0], [1, 1], [1, 1], 1, "none", [], None)
        torch.ops.mkldnn._linear_pointwise(row, row, None, "none", [], "")
    except RuntimeError:
        return False
    return True
