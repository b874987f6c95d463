"""What a dense branch for proposals adds to inference: the published R50 config against its `plus`, both prepared.

    python -m benchmarks.dense [--json FILE] [--profile] [--repeats N] [--precision fp32 bf16] [KEY VALUE …]

Random weights. Boxes are made by the dense branch and then replaced by those of the published model, so that both read
the same levels of the pyramid.
"""

import argparse

import torch
from detectron2.modeling import build_model
from torch import Tensor, nn
from torchvision.ops import box_convert

from sparsercnn import SparseRCNN, prepare_for_inference
from sparsercnn.modeling.dense_queries import DensePredictions, DenseQueries

from . import harness
from .inference import DTYPES
from .models import act_trained, add_config_options, load_config, random_images

PUBLISHED = "sparsercnn.res50.300pro.3x"


class GivenBoxes(nn.Module):
    """Dense queries whose boxes are exchanged once they are made.

    Args:
        queries: that make boxes and features.
        boxes: (N, 4) absolute xyxy, taken instead.
    """

    def __init__(self, queries: DenseQueries, boxes: Tensor):
        super().__init__()
        self.queries = queries
        self.boxes = boxes
        self.in_features = queries.in_features

    def forward(self, features: dict[str, Tensor], image_sizes: list[tuple[int, int]]) -> DensePredictions:
        return self.queries(features, image_sizes)

    def select(self, dense: DensePredictions) -> tuple[Tensor, Tensor]:
        found, features = self.queries.select(dense)
        return self.boxes.expand_as(found), features


def build_models(args: argparse.Namespace) -> tuple[SparseRCNN, SparseRCNN]:
    """The published model and the one with the dense branch, which has the other's backbone, head and boxes."""
    torch.manual_seed(0)
    published, plus = (
        build_model(load_config(f"{name}.yaml", args)).eval() for name in (PUBLISHED, f"{PUBLISHED}.plus")
    )
    act_trained(published, torch.Generator().manual_seed(0))
    plus.load_state_dict(published.state_dict(), strict=False)
    height, width = args.size
    relative = box_convert(published.init_proposal_boxes.weight.detach(), "cxcywh", "xyxy")
    boxes = relative * torch.tensor([width, height, width, height], device=relative.device)
    plus.dense_queries = GivenBoxes(plus.dense_queries, boxes)
    return published, plus


def main(argv: list[str] | None = None) -> None:
    parser = harness.argument_parser(__doc__, repeats=7)
    parser.add_argument("--size", nargs=2, type=int, default=(800, 1216), metavar=("H", "W"))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--precision", nargs="+", choices=DTYPES, default=["fp32", "bf16"])
    add_config_options(parser)
    args = parser.parse_intermixed_args(argv)
    models = build_models(args)
    inputs = random_images(args.batch, *args.size, torch.Generator().manual_seed(1), args.device)
    comparisons = []
    for precision in args.precision:
        published, plus = (prepare_for_inference(model, DTYPES[precision]) for model in models)
        title = f"{precision}, dense branch, batch {args.batch}, {args.size[0]}×{args.size[1]}"
        cases = {title: lambda model=plus: model(inputs)}
        baseline = f"{precision}, learned proposals"
        comparisons += harness.compare(
            baseline, lambda model=published: model(inputs), cases, args.repeats, args.device, 2
        )
        if args.profile:
            harness.print_profile(title, cases[title], {}, args.device)
    harness.finish(args, comparisons)


if __name__ == "__main__":
    main()
