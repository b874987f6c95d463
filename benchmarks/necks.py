"""What each neck costs next to FPN: latency on the feature maps of a ResNet-50, prepared for inference.

    python -m benchmarks.necks [--json FILE] [--profile] [--repeats N] [--device cuda] [KEY VALUE …]

The ratio is FPN's time over the neck's: below 1 where the neck is slower. A neck that runs the bottom-up network again
(recursive FPN) is timed with it, against FPN with it.
"""

import argparse

import torch
from detectron2.modeling import build_backbone
from torch import Tensor, nn

from necks.neck import NeckBackbone
from sparsercnn import prepare_for_inference

from . import harness
from .models import CONFIGS, add_config_options, load_config

RESNET = "build_resnet_backbone"


def build_backbones(args: argparse.Namespace) -> dict[str, NeckBackbone]:
    """The backbones of `configs/necks` that stand on a ResNet, by the name of their config."""
    backbones = {}
    for path in sorted((CONFIGS / "necks").glob("[!B]*.yaml")):
        cfg = load_config(f"necks/{path.name}", args)
        if cfg.MODEL.BACKBONE.NAME == "build_neck_backbone" and cfg.MODEL.NECK.BOTTOM_UP == RESNET:
            backbones[path.stem] = build_backbone(cfg).eval().to(args.device)
    return backbones


def random_features(backbone: NeckBackbone, image: Tensor) -> dict[str, Tensor]:
    """Feature maps of the shapes and the memory layout of a prepared bottom-up network's, of unit variance."""
    generator = torch.Generator().manual_seed(0)
    features = {}
    for name, shape in backbone.bottom_up.output_shape().items():
        size = (len(image), shape.channels, *(-(-length // shape.stride) for length in image.shape[2:]))
        values = torch.randn(size, generator=generator).to(image.device)
        features[name] = values.to(memory_format=torch.channels_last)
    return features


def main(argv: list[str] | None = None) -> None:
    parser = harness.argument_parser(__doc__, repeats=7)
    parser.add_argument("--size", nargs=2, type=int, default=(800, 1216), metavar=("H", "W"))
    parser.add_argument("--batch", type=int, default=1)
    add_config_options(parser)
    args = parser.parse_intermixed_args(argv)
    torch.manual_seed(0)
    backbones = build_backbones(args)
    image = torch.randn(args.batch, 3, *args.size).to(args.device)
    features = random_features(backbones["fpn"], image)

    alone, whole, parts = {}, {}, {}
    for name, backbone in backbones.items():
        if type(backbone).forward is NeckBackbone.forward:
            alone[name] = _run(backbone.neck, features)
        if type(backbone).forward is not NeckBackbone.forward or name == "fpn":
            whole[name] = _run(backbone, image)
    comparisons = []
    for title, functions in (("neck alone", alone), ("bottom-up network and neck", whole)):
        baseline = functions.pop("fpn")
        cases = {f"{name}, {title}": function for name, function in functions.items()}
        comparisons += harness.compare(f"FPN, {title}", baseline, cases, args.repeats, args.device)
        parts |= {f"FPN, {title}": baseline, **cases}
    if args.profile:
        for title, function in parts.items():
            harness.print_profile(title, function, {}, args.device, rows=8)
    harness.finish(args, comparisons)


def _run(module: nn.Module, inputs: Tensor | dict[str, Tensor]) -> harness.Function:
    prepared = prepare_for_inference(module).model

    def run() -> dict[str, Tensor]:
        with torch.inference_mode():
            return prepared(inputs)

    return run


if __name__ == "__main__":
    main()
