"""COCO metrics: FastCOCOEvaluator against detectron2's COCOEvaluator on pycocotools, on synthetic predictions.

    python -m benchmarks.evaluation [--json FILE] [--profile] [--repeats N]

What is timed is taking in the outputs of all images, one by one, and computing the metrics. val2017 has 5000 images.
"""

import argparse
import contextlib
import cProfile
import io
import json
import pstats
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator
from detectron2.structures import Boxes, Instances

from sparsercnn.evaluation.coco import FastCOCOEvaluator

from . import harness
from .models import random_targets

NAME = "benchmark_evaluation"
SIZE = (480, 640)
BASELINE = "COCOEvaluator on pycocotools"


@contextlib.contextmanager
def registered(targets: list[Instances], num_classes: int) -> Iterator[None]:
    """The data set `NAME` with these objects in images 1, 2, …"""
    annotations = []
    for image_id, target in enumerate(targets, start=1):
        for (x0, y0, x1, y1), category in zip(target.gt_boxes.tensor.tolist(), target.gt_classes.tolist(), strict=True):
            box = [x0, y0, x1 - x0, y1 - y0]
            annotations.append({"image_id": image_id, "category_id": category + 1, "bbox": box, "iscrowd": 0})
            annotations[-1] |= {"id": len(annotations), "area": box[2] * box[3]}
    images = [
        {"id": i, "file_name": f"{i}.jpg", "height": SIZE[0], "width": SIZE[1]} for i in range(1, len(targets) + 1)
    ]
    categories = [{"id": i, "name": f"class {i}"} for i in range(1, num_classes + 1)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "annotations.json"
        path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
        register_coco_instances(NAME, {}, str(path), folder)
        DatasetCatalog.get(NAME)
        try:
            yield
        finally:
            DatasetCatalog.remove(NAME)
            MetadataCatalog.remove(NAME)


def predict(targets: list[Instances], detections: int, num_classes: int, generator: torch.Generator) -> list[dict]:
    """Outputs that find half of the objects, not exactly, among random boxes of lower score."""
    outputs = []
    for target, noise in zip(
        targets, random_targets(len(targets), detections, *SIZE, num_classes, generator), strict=True
    ):
        boxes, classes = noise.gt_boxes.tensor, noise.gt_classes
        scores = torch.rand(detections, generator=generator) * 0.7
        found = min(len(target) // 2, detections)
        shift = 1 + 0.05 * torch.randn(found, 4, generator=generator)
        boxes[:found], classes[:found] = target.gt_boxes.tensor[:found] * shift, target.gt_classes[:found]
        scores[:found] += 0.3
        instances = Instances(SIZE, pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes)
        outputs.append({"instances": instances})
    return outputs


def run(evaluator: DatasetEvaluator, outputs: list[dict]) -> dict[str, float]:
    evaluator.reset()
    for image_id, output in enumerate(outputs, start=1):
        evaluator.process([{"image_id": image_id}], [output])
    with contextlib.redirect_stdout(io.StringIO()):
        return evaluator.evaluate()["bbox"]


def print_profile(title: str, evaluator: DatasetEvaluator, outputs: list[dict]) -> None:
    with cProfile.Profile() as profiler:
        run(evaluator, outputs)
    print(f"\n{title}")
    pstats.Stats(profiler).sort_stats("cumulative").print_stats(15)


def main(argv: list[str] | None = None) -> None:
    parser = harness.argument_parser(__doc__, repeats=3)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--detections", type=int, default=100, help="for each image")
    parser.add_argument("--objects", type=int, default=7, help="in each image")
    parser.add_argument("--classes", type=int, default=80)
    args = parser.parse_args(argv)
    generator = torch.Generator().manual_seed(0)
    targets = random_targets(args.images, args.objects, *SIZE, args.classes, generator)
    outputs = predict(targets, args.detections, args.classes, generator)
    with registered(targets, args.classes):
        baseline, ours = COCOEvaluator(NAME, use_fast_impl=False), FastCOCOEvaluator(NAME)
        check(run(ours, outputs), run(baseline, outputs))
        title = f"{args.images} images, {args.detections} detections each"
        comparisons = harness.compare(
            BASELINE, lambda: run(baseline, outputs), {title: lambda: run(ours, outputs)}, args.repeats, "cpu", warmup=0
        )
        if args.profile:
            print_profile("Ours", ours, outputs)
            print_profile("Baseline", baseline, outputs)
    harness.finish(argparse.Namespace(**vars(args) | {"device": "cpu"}), comparisons)


def check(results: dict[str, float], expected: dict[str, float]) -> None:
    """All metrics must be equal to 1e-9 of a percent; those without objects are NaN in both."""
    assert results.keys() == expected.keys()
    values = torch.tensor([list(results.values()), list(expected.values())], dtype=torch.float64)
    torch.testing.assert_close(values[0], values[1], rtol=0, atol=1e-9, equal_nan=True)
    print(f"same {len(results)} metrics; AP {results['AP']:.2f}")


if __name__ == "__main__":
    main()
