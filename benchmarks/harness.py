"""What all benchmarks share: fair timing of a baseline and ours in one process, tables, JSON and breakdowns.

Every round times each variant once, in an order that alternates between rounds, so that whatever else slows the machine
down slows all of them. Directly before, the variant runs untimed: what counts is a process that does one thing, not one
whose memory and caches another variant has just left. A ratio is taken within a round; what is reported is the median
of the ratios and their quartiles.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import detectron2
import torch
import torchvision
from torch.autograd import DeviceType
from torch.autograd.profiler import record_function
from torch.profiler import ProfilerActivity, profile

Function = Callable[[], object]
Name = TypeVar("Name", bound=Hashable)


@dataclass
class Comparison:
    """One case: what the baseline and what ours took in each round, in milliseconds unless the case says otherwise."""

    case: str
    baseline: str
    baseline_times: list[float]
    our_times: list[float]

    @property
    def ratios(self) -> list[float]:
        return [theirs / ours for theirs, ours in zip(self.baseline_times, self.our_times, strict=True)]

    def row(self) -> dict[str, str | float]:
        """The JSON row: medians; `spread` is the interquartile range of the ratios."""
        low, high = quartiles(self.ratios)
        return {
            "case": self.case,
            "baseline": self.baseline,
            "baseline_ms": statistics.median(self.baseline_times),
            "ours_ms": statistics.median(self.our_times),
            "ratio": statistics.median(self.ratios),
            "spread": high - low,
        }


def quartiles(values: list[float]) -> tuple[float, float]:
    if len(values) == 1:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def measure(functions: dict[Name, Function], repeats: int, device: str, warmup: int = 1) -> dict[Name, list[float]]:
    """Milliseconds that the second of two calls took in each of `repeats` rounds, after `warmup` further rounds."""
    times: dict[Name, list[float]] = {name: [] for name in functions}
    for i in range(-warmup, repeats):
        for name in list(functions)[:: -1 if i % 2 else 1]:
            elapsed = _milliseconds(functions[name], device)
            if i >= 0:
                times[name].append(elapsed)
    return times


def _milliseconds(function: Function, device: str) -> float:
    function()
    synchronize(device)
    start = time.perf_counter()
    function()
    synchronize(device)
    return 1000 * (time.perf_counter() - start)


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Convolutions on GPUs in float32 proper: by default cuDNN rounds their operands to 10 bits (TF32)."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def compare(
    baseline: str, function: Function, ours: dict[str, Function], repeats: int, device: str, warmup: int = 1
) -> list[Comparison]:
    """Compare each of `ours`, named by its case, with the function of the named baseline."""
    times = measure({baseline: function, **ours}, repeats, device, warmup)
    return [Comparison(case, baseline, times[baseline], times[case]) for case in ours]


def argument_parser(description: str, repeats: int) -> argparse.ArgumentParser:
    """The options of every benchmark, `repeats` being the default number of rounds."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table there too")
    parser.add_argument("--profile", action="store_true", help="print where the time goes, by part and by operator")
    parser.add_argument("--repeats", type=_positive, default=repeats, help=f"rounds that count (default {repeats})")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)


def environment(device: str) -> str:
    """Machine and versions in one line; the version of detectron2 tells the official one from our subset, `+lite`."""
    parts = [cpu_model(), f"{os.cpu_count()} cores", f"{torch.get_num_threads()} threads"]
    if device.startswith("cuda"):
        parts.append(torch.cuda.get_device_name(device))
    packages = [(package.__name__, package.__version__) for package in (torch, torchvision, detectron2)]
    versions = [f"{name} {version}" for name, version in [("Python", platform.python_version()), *packages]]
    return ", ".join([*parts, *versions])


def cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def table(rows: list[dict]) -> str:
    """The rows of `Comparison.row` as Markdown."""
    lines = ["| case | baseline | baseline ms | ours ms | ratio |", "| --- | --- | ---: | ---: | ---: |"]
    for row in rows:
        times = f"{row['baseline_ms']:.4g} | {row['ours_ms']:.4g}"
        lines.append(f"| {row['case']} | {row['baseline']} | {times} | {row['ratio']:.2f}× ± {row['spread'] / 2:.2f} |")
    return "\n".join(lines)


def finish(args: argparse.Namespace, comparisons: list[Comparison]) -> None:
    """Print the table with machine and versions, and write the JSON file if one is asked for."""
    rows = [comparison.row() for comparison in comparisons]
    print(f"\n{table(rows)}\n\nMedians of {args.repeats} rounds; ± half the interquartile range of the ratios.")
    print(environment(args.device))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2))


Parts = dict[str, tuple[object, str]]
"""Label → (object, name of its method)."""


def print_profile(title: str, function: Function, parts: Parts, device: str, rows: int = 15) -> None:
    """Run once more and print the time in each of the labeled methods (forward only), and in each operator."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * device.startswith("cuda")
    function()
    with _labeled(parts), profile(activities=activities, acc_events=True) as profiler:
        function()
        synchronize(device)
    events = profiler.key_averages()
    on_gpu = device.startswith("cuda")
    print(f"\n{title}, by part\n")
    for event in events:
        if event.key in parts and event.device_type == DeviceType.CPU:  # GPUs report their share as another event
            elapsed = event.device_time_total if on_gpu else event.cpu_time_total
            print(f"{event.key:40s} {elapsed / 1000:10.2f} ms in {event.count} calls")
    sort_by = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    print(f"\n{title}, by operator\n\n{events.table(sort_by=sort_by, row_limit=rows, max_name_column_width=40)}")


@contextlib.contextmanager
def _labeled(parts: Parts) -> Iterator[None]:
    """Let the methods report to the profiler under their labels."""
    for label, (owner, name) in parts.items():
        setattr(owner, name, record_function(label)(getattr(owner, name)))
    try:
        yield
    finally:
        for owner, name in parts.values():
            delattr(owner, name)
