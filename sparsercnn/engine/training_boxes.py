"""Learned proposals that start where the objects of the training data usually are."""

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode
from scipy.cluster.vq import kmeans2
from torch import Tensor

from ..errors import InputError
from ..modeling.detector import SparseRCNN

# Clusters of more boxes than this hardly differ, and take minutes.
MAX_BOXES = 50_000


def start_from_training_boxes(cfg: CfgNode, model: SparseRCNN) -> None:
    """Set the learned boxes of a detector, in place, to k-means clusters of the boxes of `DATASETS.TRAIN`.

    Raises:
        InputError: there are fewer boxes than proposals.
    """
    boxes = [box for name in cfg.DATASETS.TRAIN for record in DatasetCatalog.get(name) for box in _boxes(record)]
    if len(boxes) < model.num_proposals:
        raise InputError(
            f"MODEL.SparseRCNN.PROPOSALS is 'kmeans', but DATASETS.TRAIN has {len(boxes)} boxes, fewer than "
            f"NUM_PROPOSALS {model.num_proposals}; choose 'grid'"
        )
    with torch.no_grad():
        model.init_proposal_boxes.weight.copy_(cluster(np.array(boxes), model.num_proposals, max(cfg.SEED, 0)))


def cluster(boxes: np.ndarray, count: int, seed: int) -> Tensor:
    """(count, 4) centers of k-means clusters (k-means++ start) of (M, 4) boxes; the same seed gives the same."""
    rng = np.random.default_rng(seed)
    if len(boxes) > MAX_BOXES:
        boxes = rng.choice(boxes, MAX_BOXES, replace=False)
    centers, _ = kmeans2(boxes, count, minit="++", rng=rng)
    return torch.from_numpy(centers).float()


def _boxes(record: dict) -> list[list[float]]:
    """cxcywh in [0, 1] of the objects of an image, without crowds and what has no area."""
    found = []
    for annotation in record.get("annotations", []):
        x0, y0, x1, y1 = BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYXY_ABS)
        if not annotation.get("iscrowd") and x1 > x0 and y1 > y0:
            width, height = record["width"], record["height"]
            found.append([(x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height])
    return found
