"""What detectors cost: parameters and multiply-adds of their parts, latency and peak memory."""

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from detectron2.config import CfgNode
from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from ..engine.build import build_inference_model, build_model


def measure_costs(configs: dict[str, CfgNode], size: tuple[int, int], rounds: int) -> dict[str, dict]:
    """Parameters, billions of multiply-adds, latency and memory of each detector on one image of a (height, width)."""
    image = torch.randint(256, (3, *size), generator=torch.Generator().manual_seed(0)).float()
    costs: dict[str, dict] = {}
    detectors = {}
    for name, cfg in tqdm(configs.items(), desc="counting", unit="neck"):
        detector = _build_untrained(cfg)
        costs[name] = {
            "parameters": count_parameters(detector),
            "gmacs": count_gmacs(detector, image),
            "latency_ms": {},
            "memory_mib": {},
        }
        detectors[name] = detector
    for device in ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]:
        prepared = {name: build_inference_model(configs[name], d.to(device)) for name, d in detectors.items()}
        with tqdm(total=rounds + 1, desc=f"timing on {device}", unit="round") as bar:
            latencies = measure_latency(prepared, image.to(device), rounds, bar.update)
        for name, detector in prepared.items():
            costs[name]["latency_ms"][device] = latencies[name]
            costs[name]["memory_mib"][device] = measure_memory(detector, image.to(device))
    return costs


def _build_untrained(cfg: CfgNode) -> nn.Module:
    """The detector on the CPU with random weights: they change no cost and need no download."""
    cfg = cfg.clone()
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.TIMM.PRETRAINED", False])
    return build_model(cfg).eval()


class _Traceable(nn.Module):
    """A detector as a function of tensors, which is all that fvcore can trace."""

    def __init__(self, detector: nn.Module):
        super().__init__()
        self.detector = detector

    def forward(self, image: Tensor) -> Tensor:
        return self.detector([{"image": image}])[0]["instances"].scores


def count_parameters(detector: nn.Module) -> dict[str, float]:
    """Millions of parameters of the bottom-up network, the neck, the head, and in total with the proposals."""

    def count(module: nn.Module) -> float:
        return sum(p.numel() for p in module.parameters()) / 1e6

    parts = ("backbone", "backbone.bottom_up", "head")
    return _by_part(count(detector), *(count(detector.get_submodule(part)) for part in parts))


def count_gmacs(detector: nn.Module, image: Tensor) -> dict[str, float]:
    """Billions of multiply-adds for one image (3, H, W), by part, as fvcore counts them.

    It counts convolutions and matrix products; pooling, norms and other element-wise arithmetic are left out.
    """
    analysis = FlopCountAnalysis(_Traceable(detector.eval()), image)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    flops = analysis.by_module()
    parts = ("", "detector.backbone", "detector.backbone.bottom_up", "detector.head")
    return _by_part(*(flops[part] / 1e9 for part in parts))


def _by_part(total: float, backbone: float, bottom_up: float, head: float) -> dict[str, float]:
    return {"bottom-up": bottom_up, "neck": backbone - bottom_up, "head": head, "total": total}


def measure_latency(
    detectors: Mapping[str, nn.Module], image: Tensor, rounds: int, progress: Callable[[], object] = lambda: None
) -> dict[str, dict[str, float]]:
    """Milliseconds per image of each detector: median and interquartile range.

    The detectors take turns, so that whatever else slows the machine down meanwhile slows all of them.

    Args:
        detectors: prepared for inference, all on one device.
        image: (3, H, W), 0 to 255.
        rounds: how often each runs, after one run to warm up. `progress` is called after every round.
    """
    times: dict[str, list[float]] = {name: [] for name in detectors}
    for i in range(rounds + 1):
        for name, detector in detectors.items():
            start = time.perf_counter()
            detector([{"image": image}])
            _synchronize(detector)
            if i > 0:
                times[name].append(1000 * (time.perf_counter() - start))
        progress()
    return {name: _median_and_spread(values) for name, values in times.items()}


def _median_and_spread(values: list[float]) -> dict[str, float]:
    low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return {"median": statistics.median(values), "spread": high - low}


def measure_memory(detector: nn.Module, image: Tensor) -> float:
    """Peak MiB of tensors that inference on one image allocates, the parameters not counted."""
    device = next(detector.parameters()).device
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        detector([{"image": image}])
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        detector([{"image": image}])
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = [event for event in json.loads(trace.read_text())["traceEvents"] if event["name"] == "[memory]"]
    allocated = peak = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        allocated += event["args"]["Bytes"]
        peak = max(peak, allocated)
    return peak / 2**20


def _synchronize(detector: nn.Module) -> None:
    device = next(detector.parameters()).device
    if device.type == "cuda":
        torch.cuda.synchronize(device)
