"""How fast this machine could be: measured rates of matrix products, convolutions and copies, and work over rate."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from .harness import Comparison, synchronize


@dataclass
class Work:
    """FLOPs (a multiply-add is two) of one run."""

    conv: float
    matmul: float


@dataclass
class Rates:
    """FLOP/s of large matrix products and 3×3 convolutions, and bytes read and written per second by a copy."""

    matmul: float
    conv: float
    copy: float

    def bound_ms(self, work: Work) -> float:
        """Milliseconds that the convolutions and matrix products take at least; anything else is not counted."""
        return 1000 * (work.conv / self.conv + work.matmul / self.matmul)

    def __str__(self) -> str:
        return (
            f"matrix products {self.matmul / 1e9:.0f} GFLOP/s, convolutions {self.conv / 1e9:.0f} GFLOP/s, "
            f"copies {self.copy / 1e9:.1f} GB/s"
        )


def measure_rates(device: str, dtype: torch.dtype = torch.float32) -> Rates:
    """The best of a few runs each: 2048³ product, 256-channel 3×3 convolution on 100×152, copy of 256 MB.

    On a GPU, 8192³ and a batch of 16.
    """
    side, batch = (8192, 16) if device.startswith("cuda") else (2048, 1)
    matrix = torch.randn(side, side, device=device, dtype=dtype)
    image, weight = (
        torch.randn(shape, device=device, dtype=dtype).to(memory_format=torch.channels_last)
        for shape in ((batch, 256, 100, 152), (256, 256, 3, 3))
    )
    block, copy = torch.zeros(2**26, device=device), torch.empty(2**26, device=device)
    with torch.inference_mode():
        return Rates(
            matmul=2 * side**3 / _seconds(lambda: matrix @ matrix, device),
            conv=2 * 9 * 256**2 * batch * 100 * 152 / _seconds(lambda: F.conv2d(image, weight, padding=1), device),
            copy=2 * block.nbytes / _seconds(lambda: copy.copy_(block), device),
        )


def _seconds(function: Callable[[], Tensor], device: str) -> float:
    calls = 10 if device.startswith("cuda") else 1  # a GPU takes the next one while it computes
    times = []
    for _ in range(6):
        synchronize(device)
        start = time.perf_counter()
        for _ in range(calls):
            function()
        synchronize(device)
        times.append((time.perf_counter() - start) / calls)
    return min(times[1:])


def count_work(function: Callable[[], object]) -> Work:
    """What the function does in convolutions and matrix products, forward and, if it runs one, backward."""
    with FlopCounterMode(display=False) as counter:
        function()
    counts = {str(operator): count for operator, count in counter.get_flop_counts()["Global"].items()}
    conv = sum(count for operator, count in counts.items() if "convolution" in operator)
    return Work(conv=conv, matmul=sum(counts.values()) - conv)


def print_shares(work: Work, rates: Rates, comparisons: list[Comparison], precision: str = "float32") -> None:
    """Print the bound and the share of it that baseline and ours reach."""
    bound = rates.bound_ms(work)
    print(f"\nLimit in {precision}: {work.conv / 1e9:.1f} GFLOP of convolutions, {work.matmul / 1e9:.1f} of matrix")
    print(f"products; measured {rates}; so at least {bound:.0f} ms.")
    for comparison in comparisons:
        row = comparison.row()
        print(f"  {row['case']}: {bound / row['ours_ms']:.0%} of the limit; baseline {bound / row['baseline_ms']:.0%}")
