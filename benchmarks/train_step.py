"""A training step: the default training path against detectron2's parts as the published code uses them.

    python -m benchmarks.train_step [--json FILE] [--ablate] [--profile] [--repeats N] [--device cuda] [KEY VALUE …]

The baseline is an eager model with ROIPooler, one AdamW group for each parameter, and matching stage by stage with
costs across images. Before they are timed, losses and gradients of both are compared in double precision. In single
precision any two orders of summation differ by more: rounding moves activations across the kink of a ReLU, whose
gradient jumps there. How far each is then from the gradient in double precision is printed.
--ablate times ours without one part of `sparsercnn.fast.training` at a time, against ours.
Peak memory, in MiB, is that of a fresh process which runs two steps; libraries are what it holds before it builds a
model. On a GPU it is the peak of what tensors take.
"""

import argparse
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor

import torch
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from sparsercnn.engine import TrainStep, build_optimizer
from sparsercnn.engine.gradient_checkpointing import checkpoint_gradients
from sparsercnn.fast.training import PARTS
from sparsercnn.memory import resident_memory
from sparsercnn.modeling.pooler import Pooler

from . import harness, limits
from .baselines import PerStageCriterion, per_parameter_adamw
from .models import act_trained, add_config_options, baseline_config, load_config, random_images, random_targets

BASELINE = "eager, ROIPooler, AdamW group per parameter, matching per stage"
CHECKPOINTING = "MODEL.GRADIENT_CHECKPOINTING"
VARIANTS = ("baseline", "ours", "ours with gradient checkpointing")
AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Steps:
    """One variant: its model, and optimizer steps on the same batch again and again.

    Args:
        dtype: of weights; `args.precision` is what they are cast to in a step.
    """

    def __init__(self, args: argparse.Namespace, variant: str, dtype: torch.dtype = torch.float32):
        cfg = load_config(args.config, args)
        if "checkpointing" in variant:
            cfg.merge_from_list([CHECKPOINTING, "True"])
        torch.manual_seed(0)
        if variant == "baseline":
            self.model, step = _baseline(baseline_config(cfg), dtype)
        else:
            self.model, step = _ours(cfg, args.precision, dtype, without=variant.partition("without ")[2])
        act_trained(self.model, torch.Generator().manual_seed(0))
        if dtype == torch.float64:
            _round_boxes(self.model.head.routing.pooler)
        self.batch = _batch(args, cfg.MODEL.SparseRCNN.NUM_CLASSES)
        self._step = step(self._batches())

    def _batches(self) -> Iterator[list[dict]]:
        while True:
            yield self.batch

    def losses_and_gradients(self) -> tuple[dict[str, float], list[Tensor]]:
        """Of the batch, in float32, leaving weights and gradients as they are."""
        losses = self.model(self.batch)
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(sum(losses.values()), trainable)
        return {name: loss.item() for name, loss in losses.items()}, list(gradients)

    def run(self) -> None:
        with EventStorage():
            self._step.run_step()


def _round_boxes(pooler: Pooler) -> None:
    """Let it read boxes in float32, as detectron2's `Boxes` hold them, and calculate in the type of the features.

    The baseline's always does so.
    """
    pool = pooler.pool
    pooler.pool = lambda pyramid, boxes, levels: pool(pyramid, boxes.float().to(pyramid.maps[0].dtype), levels)


Maker = Callable[[Iterator[list[dict]]], SimpleTrainer]


def _baseline(cfg: CfgNode, dtype: torch.dtype) -> tuple[nn.Module, Maker]:
    model = build_model(cfg).train().to(dtype)
    model.criterion = PerStageCriterion(model.criterion)
    solver = cfg.SOLVER
    optimizer = per_parameter_adamw(model, solver.BASE_LR, solver.WEIGHT_DECAY, solver.CLIP_GRADIENTS.CLIP_VALUE)
    return model, lambda batches: SimpleTrainer(model, batches, optimizer)


def _ours(cfg: CfgNode, precision: str, dtype: torch.dtype, without: str) -> tuple[nn.Module, Maker]:
    model = build_model(cfg).train().to(dtype)
    if cfg.MODEL.GRADIENT_CHECKPOINTING:
        checkpoint_gradients(model)
    for part, prepare in PARTS.items():
        if part != without:
            prepare(model)
    optimizer = build_optimizer(cfg, model)
    return model, lambda batches: TrainStep(model, batches, optimizer, precision=AUTOCAST[precision])


def _batch(args: argparse.Namespace, num_classes: int) -> list[dict]:
    generator = torch.Generator().manual_seed(1)
    images = random_images(args.batch, *args.size, generator, args.device)
    targets = random_targets(args.batch, args.objects, *args.size, num_classes, generator)
    return [x | {"instances": t} for x, t in zip(images, targets, strict=True)]


@harness.full_float32()
def check(args: argparse.Namespace) -> None:
    """In double precision losses must be equal to 1e-6 of each, the gradient to 1e-6 of its norm."""
    expected, exact = Steps(args, "baseline", torch.float64).losses_and_gradients()
    for variant in VARIANTS[1:]:
        losses, gradients = Steps(args, variant, torch.float64).losses_and_gradients()
        assert losses.keys() == expected.keys()
        of_losses = max(abs(losses[name] / expected[name] - 1) for name in losses)
        of_gradient = _distance(gradients, exact)
        print(f"{variant}, in float64: losses differ by {of_losses:.1e}, the gradient by {of_gradient:.1e} of its norm")
        assert of_losses < 1e-6 and of_gradient < 1e-6, "losses or gradients differ from the baseline's"
    for variant in VARIANTS[:2]:
        losses, gradients = Steps(args, variant).losses_and_gradients()
        of_losses = max(abs(losses[name] / expected[name] - 1) for name in losses)
        print(f"{variant}, float32 against float64: losses {of_losses:.1e}, gradient {_distance(gradients, exact):.1e}")


def _distance(gradients: list[Tensor], expected: list[Tensor]) -> float:
    """Norm of the difference over the norm of what is expected, all parameters taken together."""
    squares = sum((a - b).square().sum() for a, b in zip(gradients, expected, strict=True))
    return (squares / sum(g.square().sum() for g in expected)).sqrt().item()


def peak_memory(args: argparse.Namespace, variant: str) -> dict[str, float]:
    """MiB that a fresh process needs at most for two steps: resident memory, or on a GPU what tensors take there."""
    libraries = resident_memory("RSS")
    steps = Steps(args, variant)
    for _ in range(2):
        steps.run()
    if args.device.startswith("cuda"):
        return {"tensors": torch.cuda.max_memory_allocated(args.device) / 2**20}
    peak = resident_memory("HWM")
    return {"process": peak, "process without libraries": peak - libraries}


def in_fresh_process(function: Callable, *args):
    """What the function returns, run in a process of its own, whose peak of memory is its own too."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        return fresh.submit(function, *args).result()


def measure_memory(args: argparse.Namespace) -> list[harness.Comparison]:
    peaks = {variant: in_fresh_process(peak_memory, args, variant) for variant in VARIANTS}
    size = f"{args.batch} images of {args.size[0]}×{args.size[1]}"
    return [
        harness.Comparison(
            f"{variant}: peak memory of the {kind} in MiB (not ms), {size}", BASELINE, [peak], [peaks[variant][kind]]
        )
        for variant in VARIANTS[1:]
        for kind, peak in peaks["baseline"].items()
    ]


def ablate(args: argparse.Namespace, title: str) -> list[harness.Comparison]:
    """The time without each part against the time with all of them, in one interleaved run."""
    runs = {part: Steps(args, f"ours without {part}").run for part in PARTS}
    times = harness.measure({"ours": Steps(args, "ours").run, **runs}, args.repeats, args.device)
    return [harness.Comparison(f"{part}: {title}", "ours without it", times[part], times["ours"]) for part in PARTS]


def main(argv: list[str] | None = None) -> None:
    parser = harness.argument_parser(__doc__, repeats=7)
    parser.add_argument("--config", default="sparsercnn.res50.100pro.3x.yaml", help="of configs/")
    parser.add_argument("--size", nargs=2, type=int, default=(480, 640), metavar=("H", "W"))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--objects", type=int, default=10, help="in each image")
    parser.add_argument("--precision", choices=AUTOCAST, default="fp32", help="of ours when timed")
    parser.add_argument("--no-memory", action="store_true", help="do not measure memory")
    parser.add_argument("--ablate", action="store_true", help="time ours without one part at a time, and nothing else")
    add_config_options(parser)
    args = parser.parse_intermixed_args(argv)
    title = f"training step, {args.precision}, {args.batch} images of {args.size[0]}×{args.size[1]}"
    if args.ablate:
        return harness.finish(args, ablate(args, title))

    memory = [] if args.no_memory else measure_memory(args)
    in_fresh_process(check, args)
    steps = {variant: Steps(args, variant) for variant in VARIANTS}
    work = limits.count_work(steps["baseline"].run)
    title += f", {steps['ours'].model.num_proposals} proposals"
    cases = {f"{variant}: {title}": steps[variant].run for variant in VARIANTS[1:]}
    comparisons = harness.compare(BASELINE, steps["baseline"].run, cases, args.repeats, args.device)
    rates = limits.measure_rates(args.device, AUTOCAST[args.precision] or torch.float32)
    limits.print_shares(work, rates, comparisons[:1], args.precision)
    if args.profile:
        for variant in VARIANTS[:2]:
            harness.print_profile(variant, steps[variant].run, parts(steps[variant].model), args.device)
    harness.finish(args, comparisons + memory)


def parts(model: nn.Module) -> harness.Parts:
    """Forward only: what the backward pass takes is among the operators."""
    return {
        "backbone": (model.backbone, "forward"),
        "head": (model.head, "forward"),
        "head: pyramid for pooling": (model.head.routing.pooler, "prepare"),
        "head: pooling": (model.head.routing, "forward"),
        "matching and losses": (model.criterion, "forward"),
    }


if __name__ == "__main__":
    main()
