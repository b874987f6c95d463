#!/usr/bin/env python3
"""Draw ground truth beside the predictions of an evaluation: python tools/contact_sheet.py output/quickstart"""

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib
import numpy as np
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils.visualizer import Visualizer

from sparsercnn.data import register_config_datasets
from sparsercnn.errors import InputError

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# Pictures are enlarged to about this many pixels, so that the labels stay readable on small ones.
DRAWN_SIZE = 480
PAIRS_PER_ROW = 3


def contact_sheet(output_dir: Path, images: int = 9, threshold: float = 0.25) -> Path:
    """Draw `images` pairs, spread over the first test set of the run, into `predictions.png` of `output_dir`.

    Args:
        output_dir: of a run that evaluated a data set with COCO metrics.
        threshold: lowest score drawn.

    Raises:
        InputError: the folder lacks the config or the predictions.
    """
    dataset = _test_set(output_dir)
    predictions = _read_predictions(output_dir / "inference" / dataset / "coco_instances_results.json")
    metadata = MetadataCatalog.get(dataset)
    records = DatasetCatalog.get(dataset)
    chosen = [records[i] for i in np.linspace(0, len(records) - 1, min(images, len(records))).astype(int)]

    rows = -(-len(chosen) // PAIRS_PER_ROW)
    figure, grid = plt.subplots(
        rows, 2 * PAIRS_PER_ROW, figsize=(5 * PAIRS_PER_ROW, 2.6 * rows), squeeze=False, layout="constrained"
    )
    for axes in grid.flat:
        axes.axis("off")
    for record, (left, right) in zip(chosen, grid.reshape(-1, 2), strict=False):
        truth, predicted = draw_pair(record, predictions[record["image_id"]], metadata, threshold)
        left.imshow(truth)
        left.set_title("ground truth", fontsize=8)
        right.imshow(predicted)
        right.set_title("predictions", fontsize=8)
    picture = output_dir / "predictions.png"
    figure.savefig(picture, dpi=150)
    plt.close(figure)
    return picture


def draw_pair(record: dict, predictions: list[dict], metadata: Metadata, threshold: float) -> tuple[np.ndarray, ...]:
    """The image with its annotations and with the predictions (COCO results) that score at least `threshold`."""
    image = read_image(record["file_name"], "RGB")
    scale = max(1.0, DRAWN_SIZE / max(image.shape[:2]))
    truth = Visualizer(image, metadata, scale).draw_dataset_dict(record)
    kept = [p for p in predictions if p["score"] >= threshold]
    instances = _to_instances(kept, image.shape[:2], metadata.get("thing_dataset_id_to_contiguous_id"))
    predicted = Visualizer(image, metadata, scale).draw_instance_predictions(instances)
    return truth.get_image(), predicted.get_image()


def _to_instances(
    predictions: list[dict], image_size: tuple[int, int], contiguous_id: dict[int, int] | None
) -> Instances:
    boxes = torch.tensor([p["bbox"] for p in predictions], dtype=torch.float32).reshape(-1, 4)
    # Data sets that are not COCO files have no category ids of their own.
    classes = [contiguous_id[p["category_id"]] if contiguous_id else p["category_id"] for p in predictions]
    return Instances(
        image_size,
        pred_boxes=Boxes(BoxMode.convert(boxes, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)),
        scores=torch.tensor([p["score"] for p in predictions]),
        pred_classes=torch.tensor(classes, dtype=torch.int64),
    )


def _test_set(output_dir: Path) -> str:
    path = output_dir / "config.yaml"
    if not path.is_file():
        raise InputError(f"there is no {path}; give the OUTPUT_DIR of a run")
    cfg = CfgNode(yaml.safe_load(path.read_text()))
    if not cfg.DATASETS.TEST:
        raise InputError(f"{path}: DATASETS.TEST is empty, so this run evaluated nothing")
    register_config_datasets(cfg)
    return cfg.DATASETS.TEST[0]


def _read_predictions(path: Path) -> dict[int, list[dict]]:
    if not path.is_file():
        raise InputError(f"there is no {path}; evaluate first (train_net.py --eval-only)")
    by_image = defaultdict(list)
    for prediction in json.loads(path.read_text()):
        by_image[prediction["image_id"]].append(prediction)
    return by_image


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output_dir", type=Path, help="OUTPUT_DIR of a run that evaluated")
    parser.add_argument("--images", type=int, default=9, help="how many images")
    parser.add_argument("--confidence-threshold", type=float, default=0.25, help="lowest score drawn")
    args = parser.parse_args(argv)
    try:
        print(contact_sheet(args.output_dir, args.images, args.confidence_threshold))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
