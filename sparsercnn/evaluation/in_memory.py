"""COCO's evaluation of detections that are in memory, of images that are known by their place."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any, cast

from detectron2.structures import BoxMode, Instances
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def ground_truth(records: Sequence[dict], classes: int) -> COCO:
    """A data set for `evaluate`: images are known by their place, classes by their number from 1; an area is a box's.

    Args:
        records: images in detectron2's format.
        classes: how many there are.
    """
    annotations: list[dict] = []
    for image, record in enumerate(records):
        for annotation in record["annotations"]:
            box = BoxMode.convert(list(map(float, annotation["bbox"])), annotation["bbox_mode"], BoxMode.XYWH_ABS)
            annotations.append(
                {
                    "id": len(annotations) + 1,  # 0 would mean that a detection found nothing
                    "image_id": image,
                    "category_id": annotation["category_id"] + 1,
                    "bbox": list(box),
                    "area": box[2] * box[3],
                    "iscrowd": annotation.get("iscrowd", 0),
                }
            )
    return _coco(
        {
            "images": [{"id": image} for image in range(len(records))],
            "annotations": annotations,
            "categories": [{"id": number + 1} for number in range(classes)],
        }
    )


def evaluate(truth: COCO, detections: Sequence[Instances]) -> COCOeval:
    """Match detections with the objects of a data set: an evaluation that is ready for `accumulate`.

    Args:
        truth: of `ground_truth`.
        detections: of each image, with `pred_boxes`, `scores` and `pred_classes`, in pixels of the file.
    """
    found = []
    for image, instances in enumerate(detections):
        boxes = BoxMode.convert(instances.pred_boxes.tensor, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
        columns = boxes.tolist(), instances.scores.tolist(), (instances.pred_classes + 1).tolist()
        for box, score, category in zip(*columns, strict=True):
            found.append({"image_id": image, "category_id": category, "bbox": box, "score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        results = truth.loadRes(found) if found else _coco({**truth.dataset, "annotations": []})
        evaluation = COCOeval(truth, results, "bbox")
        evaluation.evaluate()
    return evaluation


def average_precision_at_half(evaluation: COCOeval) -> float:
    """AP at IoU 0.5 of an evaluation of `evaluate`, in percent; negative if there are no objects."""
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
        evaluation.summarize()
    return 100 * float(evaluation.stats[1])


def _coco(dataset: dict) -> COCO:
    coco = COCO()
    coco.dataset = cast(Any, dataset)
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco
