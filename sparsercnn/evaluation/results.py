"""What an evaluation wrote, read back: the detections of each image beside its objects."""

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances

from ..config_text import check_config_text
from ..data import register_config_datasets
from ..data.coco_dataset import is_large, open_coco_dataset
from ..errors import InputError
from .matching import Matches, best_threshold, match_objects

RESULTS = "coco_instances_results.json"
"""The file in which an evaluation leaves its detections, as COCO's results."""


@dataclass
class ImageResult:
    """One image of a data set, what is in it and what was found.

    Attributes:
        record: of the image, in detectron2's format.
        detections: `pred_boxes` absolute xyxy, `scores`, `pred_classes`.
        objects, crowds: `gt_boxes` absolute xyxy, `gt_classes`.
    """

    record: dict
    detections: Instances
    objects: Instances
    crowds: Instances

    def matches(self, threshold: float = 0.0) -> Matches:
        """How the detections that score more than `threshold` meet the objects."""
        return match_objects(self.above(threshold), self.objects, self.crowds)

    def above(self, threshold: float) -> Instances:
        """The detections that score more than `threshold`."""
        return self.detections[self.detections.scores > threshold]


def config_of_run(output_dir: Path) -> CfgNode:
    """The config of a run that evaluated, whose data sets are registered then.

    Args:
        output_dir: OUTPUT_DIR of a training, or of an evaluation alone.

    Raises:
        InputError: there is no config in the folder, or one without data sets to evaluate.
    """
    path = output_dir / "config.yaml"
    if not path.is_file():
        path = output_dir / "inference" / "config.yaml"  # of an evaluation alone
    if not path.is_file():
        raise InputError(f"there is no {output_dir / 'config.yaml'}; give the OUTPUT_DIR of a run")
    check_config_text(str(path))
    cfg = CfgNode(yaml.safe_load(path.read_text()))
    if not cfg.DATASETS.TEST:
        raise InputError(f"{path}: DATASETS.TEST is empty, so this run evaluated nothing")
    register_config_datasets(cfg)
    return cfg


def read_results(dataset: str, folder: Path) -> list[ImageResult]:
    """Read the detections that an evaluation left, image by image.

    Args:
        dataset: registered name of the data set that was evaluated.
        folder: of the evaluation's files, OUTPUT_DIR/inference/NAME.

    Raises:
        InputError: there is no such file.
    """
    path = folder / RESULTS
    if not path.is_file():
        raise InputError(f"there is no {path}; evaluate first (train_net.py --eval-only)")
    predictions = defaultdict(list)
    for prediction in json.loads(path.read_text()):
        predictions[prediction["image_id"]].append(prediction)
    records = open_coco_dataset(dataset, str(folder)) if is_large(dataset) else DatasetCatalog.get(dataset)
    # Known once the data set was loaded. Those that are not COCO files have no category ids of their own.
    contiguous_id = MetadataCatalog.get(dataset).get("thing_dataset_id_to_contiguous_id")
    results = []
    for record in records:
        found = predictions[record["image_id"]]
        classes = [contiguous_id[p["category_id"]] if contiguous_id else p["category_id"] for p in found]
        size = record["height"], record["width"]
        detections = Instances(
            size,
            pred_boxes=_boxes([p["bbox"] for p in found], BoxMode.XYWH_ABS),
            scores=torch.tensor([p["score"] for p in found], dtype=torch.float32),
            pred_classes=torch.tensor(classes, dtype=torch.int64),
        )
        results.append(image_result(record, detections))
    return results


def image_result(record: dict, detections: Instances) -> ImageResult:
    """What was found in an image, beside what its record in detectron2's format says is there."""
    objects, crowds = (truth_of(record, is_crowd) for is_crowd in (False, True))
    return ImageResult(record, detections, objects, crowds)


def best_f1_threshold(results: list[ImageResult]) -> float:
    """The score over which detections are to be shown so that F1 over all images is best; see `best_threshold`."""
    scores, is_right = [], []
    for result in results:
        matches = result.matches()
        counted = ~matches.is_ignored
        scores.append(result.above(0.0).scores[counted])
        is_right.append(matches.is_right[counted])
    num_objects = sum(len(result.objects) for result in results)
    return best_threshold(torch.cat(scores), torch.cat(is_right), num_objects) if results else 0.5


def truth_of(record: dict, is_crowd: bool = False) -> Instances:
    """The objects of an image in detectron2's format, or its crowds: `gt_boxes` absolute xyxy, `gt_classes`."""
    annotations = [a for a in record.get("annotations", ()) if bool(a.get("iscrowd", 0)) == is_crowd]
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
    classes = torch.tensor([a["category_id"] for a in annotations], dtype=torch.int64)
    size = record["height"], record["width"]
    return Instances(size, gt_boxes=_boxes(boxes, BoxMode.XYXY_ABS), gt_classes=classes)


def _boxes(boxes: list, mode: BoxMode) -> Boxes:
    return Boxes(BoxMode.convert(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), mode, BoxMode.XYXY_ABS))
