"""RoI pooling: FusedPooler against detectron2's ROIPooler and torchvision's MultiScaleRoIAlign.

    python -m benchmarks.pooler [--json FILE] [--profile] [--repeats N] [--device cuda]

Boxes of all sizes (see `models.random_boxes`) read a pyramid p2 to p5. Every stage pools other boxes. Feature maps are
in the layout that each side's backbone makes: channels last for ours, contiguous for the others. MultiScaleRoIAlign is
not "aligned", so its results differ by half a pixel.
"""

import argparse
from collections import OrderedDict

import torch
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign

from sparsercnn.fast.pooling_gradients import SharedGradientPooler
from sparsercnn.modeling.pooler import FusedPooler
from sparsercnn.modeling.roi_routing import LevelRouting

from . import harness
from .limits import measure_rates
from .models import random_boxes

STRIDES = (4, 8, 16, 32)
RESOLUTION, SAMPLING_RATIO = 7, 2
BASELINE = "detectron2 ROIPooler"


class Case:
    """Feature maps, boxes of each stage, and the gradients that come back to the pooled features."""

    def __init__(self, args: argparse.Namespace):
        generator = torch.Generator().manual_seed(0)
        height, width = args.size
        shapes = [(args.batch, args.channels, -(-height // s), -(-width // s)) for s in STRIDES]
        self.size = (height, width)
        self.features = [torch.randn(s, generator=generator).to(args.device).requires_grad_() for s in shapes]
        self.our_features = [
            f.detach().to(memory_format=torch.channels_last).clone().requires_grad_() for f in self.features
        ]
        boxes = [random_boxes(args.batch * args.boxes, height, width, generator) for _ in range(args.stages)]
        self.boxes = torch.stack(boxes).view(args.stages, args.batch, args.boxes, 4).to(args.device)
        bins = RESOLUTION**2
        shape = (args.batch * args.boxes, bins, args.channels)
        self.our_gradient = torch.randn(shape, generator=generator).to(args.device)
        self.gradient = self.our_gradient.transpose(1, 2).unflatten(2, (RESOLUTION, RESOLUTION)).contiguous()
        pooler = SharedGradientPooler if args.device == "cpu" else FusedPooler
        self.fused = LevelRouting(pooler(list(STRIDES), RESOLUTION, SAMPLING_RATIO), args.channels).to(args.device)
        self.plain = ROIPooler(RESOLUTION, [1 / s for s in STRIDES], SAMPLING_RATIO, "ROIAlignV2")
        self.torchvision = MultiScaleRoIAlign(["p2", "p3", "p4", "p5"], RESOLUTION, SAMPLING_RATIO)
        with torch.no_grad():
            self.table = self.fused.pooler.prepare(self.our_features)
            _ = self.table.pixels  # laid out now, not in the first measurement

    @torch.no_grad()
    def pool_plain(self) -> Tensor:
        return self.plain(self.features, [Boxes(b) for b in self.boxes[0]])

    @torch.no_grad()
    def pool_torchvision(self) -> Tensor:
        features = OrderedDict(zip(["p2", "p3", "p4", "p5"], self.features, strict=True))
        return self.torchvision(features, list(self.boxes[0]), [self.size] * len(self.boxes[0]))

    @torch.no_grad()
    def pool(self) -> Tensor:
        return self.fused(self.table, self.boxes[0])

    @torch.no_grad()
    def prepare_and_pool(self) -> Tensor:
        return self.fused(self.fused.pooler.prepare(self.our_features), self.boxes[0])

    def train_plain(self) -> list[Tensor]:
        pooled = [self.plain(self.features, [Boxes(b) for b in boxes]) for boxes in self.boxes]
        return torch.autograd.grad(pooled, self.features, [self.gradient] * len(pooled))

    def train(self) -> list[Tensor]:
        table = self.fused.pooler.prepare(self.our_features)
        pooled = [self.fused(table, boxes) for boxes in self.boxes]
        return torch.autograd.grad(pooled, self.our_features, [self.our_gradient] * len(pooled))


def check(case: Case) -> None:
    """Features and gradients must be the baseline's to 1e-4 (of the largest gradient)."""
    pooled, expected = case.pool(), case.pool_plain().flatten(2).transpose(1, 2)
    difference = (pooled - expected).abs().max().item()
    pairs = list(zip(case.train(), case.train_plain(), strict=True))
    gradients = max(((ours - theirs).abs().max() / theirs.abs().max()).item() for ours, theirs in pairs)
    print(f"largest difference: features {difference:.1e}, gradients {gradients:.1e} of the largest")
    assert difference < 1e-4 and gradients < 1e-4, "FusedPooler differs from ROIPooler"


def print_limit(case: Case, args: argparse.Namespace, comparison: harness.Comparison) -> None:
    """Bytes that pooling must move at least: the samples' pixels read once, the pooled features written once."""
    levels = case.fused.assign_levels(case.boxes[0])
    print("boxes on p2 to p5:", [int((levels == level).sum()) for level in case.fused.levels])
    pooled = case.plain(case.features, [Boxes(b) for b in case.boxes[0]])
    gradients = torch.autograd.grad(pooled.sum(), case.features)
    pixels = sum(int((g[:, 0] != 0).sum()) for g in gradients)  # those that were read are those with a gradient
    size = (pixels * args.channels + pooled.numel()) * pooled.element_size()
    bound = 1000 * size / measure_rates(args.device).copy
    print(f"limit: {size / 1e6:.1f} MB (each pixel that is sampled once, and the result) at the measured copy rate:")
    print(f"  {bound:.2f} ms; ours reaches {bound / comparison.row()['ours_ms']:.0%}")


def main(argv: list[str] | None = None) -> None:
    parser = harness.argument_parser(__doc__, repeats=15)
    parser.add_argument("--size", nargs=2, type=int, default=(800, 1216), metavar=("H", "W"))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--boxes", type=int, default=300, help="for each image")
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--stages", type=int, default=6)
    args = parser.parse_args(argv)
    case = Case(args)
    check(case)
    forward = {
        "one stage, forward": case.pool,
        "one stage, forward, building the pixel table included": case.prepare_and_pool,
    }
    shared = (args.repeats, args.device)
    comparisons = [
        *harness.compare(BASELINE, case.pool_plain, forward, *shared),
        *harness.compare(
            "torchvision MultiScaleRoIAlign", case.pool_torchvision, {"one stage, forward": case.pool}, *shared
        ),
        *harness.compare(
            BASELINE, case.train_plain, {f"{args.stages} stages, forward and backward": case.train}, *shared
        ),
    ]
    print_limit(case, args, comparisons[0])
    if args.profile:
        parts = {"pooling": (case.fused, "forward")}
        harness.print_profile("Ours, forward and backward", case.train, parts, args.device)
        harness.print_profile("ROIPooler, forward and backward", case.train_plain, {}, args.device)
    harness.finish(args, comparisons)


if __name__ == "__main__":
    main()
