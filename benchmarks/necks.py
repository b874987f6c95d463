"""What each neck costs: whole detectors on a ResNet-50, plain with detectron2's ROIPooler and prepared for inference.

    python -m benchmarks.necks [--json FILE] [--profile] [--repeats N] [KEY VALUE …]

All detectors take turns in one run, so that their times can be compared with each other too. The baseline of each is
the same detector, unprepared. Random weights, with proposals of all sizes (`models.act_trained`).
"""

import argparse

import torch
from detectron2.modeling import build_model
from torch import nn

from sparsercnn import prepare_for_inference

from . import harness
from .models import CONFIGS, act_trained, add_config_options, baseline_config, load_config, random_images

RESNET = "build_resnet_backbone"
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def build_detectors(args: argparse.Namespace) -> dict[str, nn.Module]:
    """The plain detectors of `configs/necks` that stand on a ResNet, by the name of their config."""
    detectors = {}
    for path in sorted((CONFIGS / "necks").glob("[!B]*.yaml")):
        cfg = load_config(f"necks/{path.name}", args)
        if cfg.MODEL.NECK.BOTTOM_UP == RESNET and (not args.necks or path.stem in args.necks):
            detectors[path.stem] = build_model(baseline_config(cfg)).eval()
            act_trained(detectors[path.stem], torch.Generator().manual_seed(0))
    return detectors


def prepare(detector: nn.Module, args: argparse.Namespace, name: str, dtype: torch.dtype) -> nn.Module:
    """The same detector with the fused pooler, prepared for inference."""
    fused = build_model(load_config(f"necks/{name}.yaml", args)).eval()
    fused.load_state_dict(detector.state_dict())
    return prepare_for_inference(fused, dtype)


def main(argv: list[str] | None = None) -> None:
    parser = harness.argument_parser(__doc__, repeats=5)
    parser.add_argument("--size", nargs=2, type=int, default=(480, 640), metavar=("H", "W"))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--necks", nargs="+", metavar="NAME", help="names of files in configs/necks (default all)")
    add_config_options(parser)
    args = parser.parse_intermixed_args(argv)
    inputs = random_images(args.batch, *args.size, torch.Generator().manual_seed(1), args.device)

    functions = {}
    for name, detector in build_detectors(args).items():
        functions[name, "plain"] = torch.no_grad()(lambda model=detector: model(inputs))
        for precision, dtype in PRECISIONS.items():
            prepared = prepare(detector, args, name, dtype)
            functions[name, precision] = lambda model=prepared: model(inputs)
    times = harness.measure(functions, args.repeats, args.device)
    comparisons = [
        harness.Comparison(
            f"{name}, {variant}, batch {args.batch}, {args.size[0]}×{args.size[1]}",
            f"{name}, unprepared float32 with ROIPooler",
            times[name, "plain"],
            times[name, variant],
        )
        for name, variant in functions
        if variant != "plain"
    ]
    if args.profile:
        for (name, variant), function in functions.items():
            harness.print_profile(f"{name}, {variant}", function, {}, args.device, rows=8)
    harness.finish(args, comparisons)


if __name__ == "__main__":
    main()
