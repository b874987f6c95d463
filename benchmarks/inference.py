"""Whole-detector inference: `prepare_for_inference` against the unprepared eager model with detectron2's ROIPooler.

    python -m benchmarks.inference [--json FILE] [--profile] [--repeats N] [--device cuda] [KEY VALUE …]
    python -m benchmarks.inference --ablate [--json FILE] …
    python -m benchmarks.inference --runtimes [--json FILE] …

R50-FPN with six stages and random weights that `models.act_trained` makes behave like trained ones. Agreement comes
before times: every proposal of the last stage is compared with the same one of the baseline, its best score and its box
in pixels. In float32 scores must be equal to 1e-4 and boxes to 0.05 pixels.

`--ablate` compares the prepared model with itself without one part at a time: the ratio is the time without the part to
the time with it. `--runtimes` adds the exported model in onnxruntime and in OpenVINO (float32, bfloat16, INT8), whose
export compares it with PyTorch.
"""

import argparse
import copy
import tempfile
from dataclasses import fields
from pathlib import Path

import torch
from detectron2.modeling import build_model
from torch import nn

from sparsercnn import prepare_for_inference
from sparsercnn.fast.inference import Parts, prepare_parts
from sparsercnn.visualization.stages import predict_stages

from . import harness, limits
from .models import act_trained, add_config_options, baseline_config, load_config, random_images
from .runtimes import exported

BASELINE = "unprepared eager float32 model with ROIPooler"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def build_models(args: argparse.Namespace) -> tuple[nn.Module, nn.Module]:
    """The baseline, and the same detector to be prepared."""
    cfg = load_config("sparsercnn.res50.300pro.3x.yaml", args)
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    act_trained(model, torch.Generator().manual_seed(0))
    baseline = build_model(baseline_config(cfg)).eval()
    baseline.load_state_dict(model.state_dict())
    return baseline, model


def prepare(model: nn.Module, args: argparse.Namespace) -> dict[str, nn.Module]:
    """The prepared model by "PRECISION eager" and "PRECISION compiled"."""
    return {
        # Each from a copy, so that what one compiles does not serve another.
        f"{precision} {mode}": prepare_for_inference(copy.deepcopy(model), DTYPES[precision], mode == "compiled")
        for precision in args.precision
        for mode in args.mode
    }


@torch.no_grad()
def check(name: str, baseline: nn.Module, ours: nn.Module, inputs: list[dict]) -> None:
    """Compare all proposals of the last stage."""
    pairs = zip(ours.run(predict_stages, inputs), predict_stages(baseline, inputs), strict=True)
    last = [(found[-1], expected[-1]) for found, expected in pairs]
    scores = max((a.scores - b.scores).abs().max().item() for a, b in last)
    boxes = torch.cat([(a.pred_boxes.tensor - b.pred_boxes.tensor).abs().amax(1) for a, b in last])
    print(
        f"{name}: scores agree to {scores:.1e}; boxes to {boxes.max():.1e} pixels, half of them to "
        f"{boxes.median():.1e}, {(boxes < 1).float().mean():.1%} to one pixel"
    )
    assert not name.startswith("fp32") or (scores < 1e-4 and boxes.max() < 0.05), "results differ from the baseline's"


def ablate(model: nn.Module, inputs: list[dict], args: argparse.Namespace, title: str) -> list[harness.Comparison]:
    """Each part of `prepare_for_inference`: the time without it, as the baseline, and the time with all of them."""
    comparisons = []
    for precision in args.precision:
        chosen = {"all": Parts()} | {field.name: Parts(**{field.name: False}) for field in fields(Parts)}
        prepared = {name: prepare_parts(model, DTYPES[precision], False, parts) for name, parts in chosen.items()}
        functions = {name: (lambda model=model: model(inputs)) for name, model in prepared.items()}
        times = harness.measure(functions, args.repeats, args.device)
        whole = times.pop("all")
        comparisons += [
            harness.Comparison(f"{part}, {precision}, {title}", f"without {part}", without, whole)
            for part, without in times.items()
        ]
    return comparisons


def main(argv: list[str] | None = None) -> None:
    parser = harness.argument_parser(__doc__, repeats=7)
    parser.add_argument("--ablate", action="store_true", help="time the prepared model without one part at a time")
    parser.add_argument("--size", nargs=2, type=int, default=(800, 1216), metavar=("H", "W"))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--precision", nargs="+", choices=DTYPES, default=["fp32", "bf16"])
    parser.add_argument("--mode", nargs="+", choices=["eager", "compiled"], default=["eager"], help="compiled: on GPUs")
    parser.add_argument("--runtimes", action="store_true", help="time the exported model in onnxruntime and OpenVINO")
    add_config_options(parser)
    args = parser.parse_intermixed_args(argv)

    baseline, model = build_models(args)
    inputs = random_images(args.batch, *args.size, torch.Generator().manual_seed(1), args.device)
    title = f"batch {args.batch}, {args.size[0]}×{args.size[1]}, {model.num_proposals} proposals"
    if args.ablate:
        harness.finish(args, ablate(model, inputs, args, title))
        return
    ours = prepare(model, args)
    with harness.full_float32():
        for name, prepared in ours.items():
            check(name, baseline, prepared, inputs)

    def run_baseline() -> list[dict]:
        with torch.no_grad():
            return baseline(inputs)

    cases = {f"{name}, {title}": (lambda model=model: model(inputs)) for name, model in ours.items()}
    if args.runtimes:
        with tempfile.TemporaryDirectory() as folder:  # the runtimes have read their files when they are opened
            peers = exported(model, inputs, torch.get_num_threads(), Path(folder))
        cases |= {f"{name}, {title}": function for name, function in peers.items()}
    comparisons = harness.compare(BASELINE, run_baseline, cases, args.repeats, args.device, warmup=2)
    work = limits.count_work(lambda: baseline(inputs))
    for precision in args.precision:
        of_precision = [c for c in comparisons if c.case.startswith(precision)]
        rates = limits.measure_rates(args.device, DTYPES[precision])
        limits.print_shares(work, rates, of_precision, precision)
    for comparison in comparisons:
        print(f"{comparison.case}: {1000 * args.batch / comparison.row()['ours_ms']:.2f} images/s")
    if args.profile:
        harness.print_profile("Baseline", run_baseline, parts(baseline), args.device)
        for name, prepared in ours.items():
            # A compiled part cannot be taken apart: there, only operators and kernels are listed.
            inner = parts(prepared.model) if name.endswith("eager") else {}
            harness.print_profile(name, lambda model=prepared: model(inputs), inner, args.device)
    harness.finish(args, comparisons)


def parts(model: nn.Module) -> harness.Parts:
    """Labels of the parts of a detector that a profile tells apart."""
    head = model.head
    return {
        "backbone": (model.backbone, "forward"),
        "head": (head, "forward"),
        "head: pyramid for pooling": (head.routing.pooler, "prepare"),
        "head: pooling": (head.routing, "forward"),
        **{f"head: stage {i} without pooling": (stage, "forward") for i, stage in enumerate(head.head_series)},
    }


if __name__ == "__main__":
    main()
