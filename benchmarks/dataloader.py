"""Loading training images: our loader and mapper against detectron2's loader with its DatasetMapper.

    python -m benchmarks.dataloader [--json FILE] [--profile] [--repeats N] [--workers N] [--jpeg-size H W]

The images are those of COCO128 in DETECTRON2_DATASETS, or generated JPEGs (of 480×640 pixels, or --jpeg-size) where it
is not there. Flip and resize are on, crops are not. Without workers it is the processor time of loading that is
compared; with them, their start is part of each round.
"""

import contextlib
import cProfile
import io
import json
import os
import pstats
import random
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog, build_detection_train_loader
from detectron2.data.datasets import register_coco_instances
from PIL import Image

from sparsercnn.data import SparseRCNNDatasetMapper
from sparsercnn.engine import Trainer

from . import harness
from .models import add_config_options, load_config, random_boxes

NAME = "benchmark_dataloader"
BASELINE = "detectron2 loader and DatasetMapper"


@contextlib.contextmanager
def registered(size: tuple[int, int] | None, count: int) -> Iterator[str]:
    """The data set `NAME`; yields what it holds."""
    coco128 = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / "coco128"
    with tempfile.TemporaryDirectory() as folder:
        if size is None and coco128.is_dir():
            images, annotations = coco128 / "train2017", coco128 / "annotations" / "instances_all.json"
            title = "COCO128"
        else:
            size = size or (480, 640)
            images = Path(folder)
            annotations = generate(images, *size, count)
            title = f"{count} generated JPEGs of {size[0]}×{size[1]}"
        register_coco_instances(NAME, {}, str(annotations), str(images))
        try:
            yield title
        finally:
            DatasetCatalog.remove(NAME)
            MetadataCatalog.remove(NAME)


def generate(folder: Path, height: int, width: int, count: int) -> Path:
    """JPEGs of smooth noise with five boxes each; returns the annotation file."""
    generator = torch.Generator().manual_seed(0)
    images, annotations = [], []
    for i in range(1, count + 1):
        noise = torch.randint(256, (height // 16, width // 16, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(noise.numpy()).resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{i}.jpg")
        images.append({"id": i, "file_name": f"{i}.jpg", "height": height, "width": width})
        for x0, y0, x1, y1 in random_boxes(5, height, width, generator).tolist():
            box = [x0, y0, x1 - x0, y1 - y0]
            annotations.append({"id": len(annotations) + 1, "image_id": i, "category_id": 1, "bbox": box, "iscrowd": 0})
            annotations[-1]["area"] = box[2] * box[3]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder / "annotations.json"


def fetch(loader: Iterable[list[dict]], batches: int) -> None:
    iterator = iter(loader)
    for _ in range(batches):
        next(iterator)


def check(cfg: CfgNode) -> None:
    """With the same random numbers, boxes must be the baseline's; prints how far pixels are."""
    theirs, ours = DatasetMapper(cfg, is_train=True), SparseRCNNDatasetMapper(cfg, is_train=True)
    difference = 0.0
    for i, record in enumerate(DatasetCatalog.get(NAME)[:8]):
        found, expected = _map(ours, record, i), _map(theirs, record, i)
        boxes = [x["instances"].gt_boxes.tensor for x in (found, expected)]
        torch.testing.assert_close(*boxes, rtol=0, atol=1e-3)
        difference = max(difference, (found["image"].float() - expected["image"].float()).abs().mean().item())
    print(f"same boxes; mean difference of pixels at most {difference:.2f} of 255")


def _map(mapper, record: dict, seed: int) -> dict:
    random.seed(seed)
    np.random.seed(seed)
    return mapper(record)


def main(argv: list[str] | None = None) -> None:
    parser = harness.argument_parser(__doc__, repeats=7)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--batches", type=int, default=8, help="in each round")
    parser.add_argument("--jpeg-size", nargs=2, type=int, metavar=("H", "W"), help="generate JPEGs of this size")
    parser.add_argument("--images", type=int, default=64, help="to generate")
    add_config_options(parser)
    args = parser.parse_intermixed_args(argv)
    own = ["DATASETS.TRAIN", (NAME,), "DATALOADER.NUM_WORKERS", args.workers, "SOLVER.IMS_PER_BATCH", 8]
    cfg = load_config("sparsercnn.res50.100pro.3x.yaml", args)
    cfg.merge_from_list(own)
    with registered(args.jpeg_size, args.images) as title:
        check(cfg)
        baseline = build_detection_train_loader(cfg, mapper=DatasetMapper(cfg, is_train=True))
        ours = Trainer.build_train_loader(cfg)
        title += f", {args.batches} batches of {cfg.SOLVER.IMS_PER_BATCH}, {args.workers} workers"
        case = {title: lambda: fetch(ours, args.batches)}
        comparisons = harness.compare(BASELINE, lambda: fetch(baseline, args.batches), case, args.repeats, "cpu")
        if args.profile:
            print_profile("Baseline", baseline, args.batches)
            print_profile("Ours", ours, args.batches)
    harness.finish(args, comparisons)


def print_profile(title: str, loader: Iterable[list[dict]], batches: int) -> None:
    """By function, of this process: use it without workers."""
    text = io.StringIO()
    with cProfile.Profile() as profiler:
        fetch(loader, batches)
    pstats.Stats(profiler, stream=text).sort_stats("tottime").print_stats(12)
    print(f"\n{title}\n{text.getvalue()}")


if __name__ == "__main__":
    main()
