"""Recall of class-agnostic proposals, averaged over IoU thresholds, and a file for them.

Hosang et al., What Makes for Effective Detection Proposals?, PAMI 2016.
"""

import pickle
from collections.abc import Sequence
from typing import Any

import torch
from pycocotools.coco import COCO
from torch import Tensor

from detectron2.structures import Boxes, BoxMode, pairwise_iou
from detectron2.utils.file_io import PathManager

# Smallest and largest area of an object in square pixels, both included, by the name of the range.
_AREA_RANGES = {
    "all": (0, 1e5**2),
    "small": (0, 32**2),
    "medium": (32**2, 96**2),
    "large": (96**2, 1e5**2),
    "96-128": (96**2, 128**2),
    "128-256": (128**2, 256**2),
    "256-512": (256**2, 512**2),
    "512-inf": (512**2, 1e5**2),
}


def _evaluate_box_proposals(
    dataset_predictions: list[dict],
    coco_api: COCO,
    thresholds: Tensor | Sequence[float] | None = None,
    area: str = "all",
    limit: int | None = None,
) -> dict[str, Any]:
    """Share of the objects that proposals cover, for each IoU threshold and on average.

    Objects and proposals are paired one to one within each image, always the pair of the highest IoU next. Images
    without proposals do not count, nor do crowds.

    Args:
        dataset_predictions: of each image, "image_id" and "proposals", `Instances` with `proposal_boxes` (xyxy,
            absolute) and `objectness_logits`.
        coco_api: the annotations.
        thresholds: IoU that an object's proposal must reach; 0.5, 0.55, …, 0.95 by default.
        area: which objects count: "all", "small", "medium", "large", "96-128", "128-256", "256-512" or "512-inf".
        limit: best proposals of each image that count; None for all.

    Returns:
        "ar", the mean of "recalls", one for each of "thresholds"; "gt_overlaps", sorted, the IoU of each object and its
        proposal; "num_pos", the number of objects.
    """
    assert area in _AREA_RANGES, f"Unknown area range: {area}"
    smallest, largest = _AREA_RANGES[area]
    num_objects = 0
    coverages = [torch.zeros(0)]
    for prediction in dataset_predictions:
        proposals = prediction["proposals"]
        order = proposals.objectness_logits.sort(descending=True)[1]
        boxes = proposals.proposal_boxes[order]
        annotations = coco_api.loadAnns(coco_api.getAnnIds(imgIds=[prediction["image_id"]]))
        objects = [
            BoxMode.convert(a["bbox"], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
            for a in annotations
            if a["iscrowd"] == 0 and smallest <= a["area"] <= largest
        ]
        if not objects or len(boxes) == 0:
            continue
        num_objects += len(objects)
        coverages.append(_cover_one_to_one(pairwise_iou(Boxes(objects), boxes[:limit])))

    overlaps = torch.cat(coverages).sort()[0]
    if thresholds is None:
        thresholds = torch.arange(0.5, 0.95 + 1e-5, 0.05, dtype=torch.float32)
    recalls = torch.tensor([float((overlaps >= t).sum()) for t in thresholds]) / float(num_objects)
    return {
        "ar": recalls.mean(),
        "recalls": recalls,
        "thresholds": thresholds,
        "gt_overlaps": overlaps,
        "num_pos": num_objects,
    }


def _cover_one_to_one(overlaps: Tensor) -> Tensor:
    """(M,) IoU of pairs out of (M, N) objects and proposals, the best pair first; 0 where proposals run out."""
    num_objects, num_proposals = overlaps.shape
    coverage = torch.zeros(num_objects)
    remaining = overlaps.clone()
    for i in range(min(num_objects, num_proposals)):
        best = int(remaining.argmax())
        coverage[i] = remaining.flatten()[best]
        remaining[best // num_proposals, :] = -1
        remaining[:, best % num_proposals] = -1
    return coverage


def _save_proposals(predictions: list[dict], path: str) -> None:
    """Write the proposals of all images in the format that `load_proposals_into_dataset` reads."""
    proposals = {
        "boxes": [p["proposals"].proposal_boxes.tensor.numpy() for p in predictions],
        "objectness_logits": [p["proposals"].objectness_logits.numpy() for p in predictions],
        "ids": [p["image_id"] for p in predictions],
        "bbox_mode": BoxMode.XYXY_ABS.value,
    }
    with PathManager.open(path, "wb") as f:
        pickle.dump(proposals, f)
