"""Weighted sums of table rows on GPUs, as Triton kernels. `row_sums` decides when to use them.

A program has one bag and a block of channels. It adds up in float32, whatever the types of its operands.

Tillet et al., Triton: An Intermediate Language and Compiler for Tiled Neural Network Computations, MAPL 2019.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_BLOCK = 256
"""Channels of one program."""
LANE_CHANNELS = 4
"""That a thread holds of them: 16 bytes of float32, the most that one instruction loads."""


def sum_rows(table: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """What `embedding_bag` computes in mode "sum".

    Args:
        table: (P, C), float32, bfloat16 or float16.
        index: (bags, n) int64 rows, not checked: each must be in the table.
        weight: (bags, n) of each row.

    Returns:
        (bags, C), in the type of the table.
    """
    sums = table.new_empty(len(index), table.shape[1])
    _launch(_sum_rows, table.contiguous(), index, weight, sums)
    return sums


def add_transposed(table_gradient: Tensor, index: Tensor, weight: Tensor, gradient: Tensor) -> None:
    """Add the weighted gradient of each bag to the rows that the bag has summed. The order of additions is not fixed.

    Args:
        table_gradient: (P, C) float32, contiguous, changed in place.
        index, weight: as in `sum_rows`.
        gradient: (bags, C) of the sums.
    """
    _launch(_add_transposed, table_gradient, index, weight, gradient.contiguous())


def _launch(kernel, table: Tensor, index: Tensor, weight: Tensor, sums: Tensor) -> None:
    bags, channels = sums.shape
    if sums.numel() == 0:
        return  # a grid without programs is an error
    block = min(triton.next_power_of_2(channels), MAX_BLOCK)
    warps = max(block // (32 * LANE_CHANNELS), 1)
    with torch.cuda.device_of(table):
        kernel[bags, triton.cdiv(channels, block)](
            table, index.contiguous(), weight.contiguous(), sums, channels, index.shape[1], block, num_warps=warps
        )


@triton.jit
def _sum_rows(table, index, weight, sums, CHANNELS: tl.constexpr, TAPS: tl.constexpr, BLOCK: tl.constexpr):
    bag = tl.program_id(0).to(tl.int64)  # what it is multiplied by may take it beyond int32
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = channel < CHANNELS
    total = tl.full([BLOCK], 0, tl.float32)
    for tap in range(TAPS):
        row = tl.load(index + bag * TAPS + tap)
        factor = tl.load(weight + bag * TAPS + tap).to(tl.float32)
        total += factor * tl.load(table + row * CHANNELS + channel, mask=inside, other=0).to(tl.float32)
    tl.store(sums + bag * CHANNELS + channel, total, mask=inside)


@triton.jit
def _add_transposed(table, index, weight, sums, CHANNELS: tl.constexpr, TAPS: tl.constexpr, BLOCK: tl.constexpr):
    bag = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = channel < CHANNELS
    gradient = tl.load(sums + bag * CHANNELS + channel, mask=inside, other=0).to(tl.float32)
    for tap in range(TAPS):
        row = tl.load(index + bag * TAPS + tap)
        factor = tl.load(weight + bag * TAPS + tap).to(tl.float32)
        # Samples outside the image all name the same row, without weight: additions there would wait for each other.
        if factor != 0:
            tl.atomic_add(table + row * CHANNELS + channel, factor * gradient, mask=inside, sem="relaxed")
