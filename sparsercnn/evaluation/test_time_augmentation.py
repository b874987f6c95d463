"""Test-time augmentation for boxes: the image at several scales and mirrored, detections of all of them merged."""

import logging
from collections.abc import Callable, Sequence
from functools import partial

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import batched_nms
from detectron2.modeling import DatasetMapperTTA
from detectron2.structures import Boxes, Instances
from torch import nn

from ..data.images import read_image
from ..errors import InputError
from .voting import soft_vote_by_class


class SparseRCNNWithTTA(nn.Module):
    """Takes and returns what the detector does, for the union of the views that `TEST.AUG` describes.

    It serves any detector. Sparse R-CNN needs no NMS, but several views find the same object several times.

    Args:
        model: the detector.
        tta_mapper: dataset dict with "image" in its original size -> list of augmented dataset dicts with
            "transforms".
        merge: from the detections of all views, in the original image, to those of the image, best first.
        detections_per_image: number of detections kept.
        image_format: to read "file_name" with.
        scale_ranges: of each view the least and the largest size, sqrt(width · height) in pixels of the original image,
            between which a box lies that is kept; None keeps all.
    """

    @configurable
    def __init__(
        self,
        model: nn.Module,
        *,
        tta_mapper: DatasetMapperTTA,
        merge: Callable[[Instances], Instances],
        detections_per_image: int,
        image_format: str,
        scale_ranges: Sequence[tuple[float, float]] | None = None,
    ):
        super().__init__()
        self.model = model
        self.tta_mapper = tta_mapper
        self.merge = merge
        self.detections_per_image = detections_per_image
        self.image_format = image_format
        self.scale_ranges = scale_ranges

    @classmethod
    def from_config(cls, cfg: CfgNode, model: nn.Module) -> dict:
        aug = cfg.TEST.AUG
        merge: Callable[[Instances], Instances]
        merge, ranges = partial(suppress, iou_threshold=cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST), None
        if aug.CVPODS_TTA:
            merge = soft_vote_by_class
            if aug.SCALE_FILTER:
                check_scale_ranges(aug.MIN_SIZES, aug.SCALE_RANGES)
                views_per_size = 2 if aug.FLIP else 1
                ranges = [tuple(r) for r in aug.SCALE_RANGES[: len(aug.MIN_SIZES)] for _ in range(views_per_size)]
        return {
            "model": model,
            "tta_mapper": DatasetMapperTTA(cfg),
            "merge": merge,
            "detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "image_format": cfg.INPUT.FORMAT,
            "scale_ranges": ranges,
        }

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """Detections in "height" and "width". An input without "image" is read from its "file_name"."""
        return [{"instances": self._detect(self._with_image(x))} for x in batched_inputs]

    def _with_image(self, dataset_dict: dict) -> dict:
        dataset_dict = dict(dataset_dict)
        if "image" not in dataset_dict:
            image = read_image(dataset_dict["file_name"], self.image_format)
            dataset_dict["image"] = torch.from_numpy(image.transpose(2, 0, 1).copy())
        dataset_dict.setdefault("height", dataset_dict["image"].shape[1])
        dataset_dict.setdefault("width", dataset_dict["image"].shape[2])
        return dataset_dict

    def _detect(self, dataset_dict: dict) -> Instances:
        size = dataset_dict["height"], dataset_dict["width"]
        found = [self._detect_in_view(view, size) for view in self.tta_mapper(dataset_dict)]
        if self.scale_ranges is not None:
            found = [keep_sizes(view, *sizes) for view, sizes in zip(found, self.scale_ranges, strict=True)]
        return self.merge(Instances.cat(found))[: self.detections_per_image]

    def _detect_in_view(self, view: dict, original_size: tuple[int, int]) -> Instances:
        """Detections in one augmented view, taken back to the original image."""
        transforms = view.pop("transforms")
        # The transforms lead to the pixels of the view, so the detector's output has to be in these.
        view["height"], view["width"] = view["image"].shape[1:]
        output = self.model([view])[0]
        if "instances" not in output:
            raise InputError("TEST.AUG.ENABLED is True, but this model gives proposals and no detections to merge")
        detections = output["instances"]
        boxes = transforms.inverse().apply_box(detections.pred_boxes.tensor.float().cpu().numpy())
        result = Instances(original_size, scores=detections.scores, pred_classes=detections.pred_classes)
        result.pred_boxes = Boxes(torch.from_numpy(boxes).to(detections.scores))
        result.pred_boxes.clip(original_size)
        return result


def check_scale_ranges(sizes: Sequence[int], ranges: Sequence) -> None:
    """Check `TEST.AUG.SCALE_RANGES`: one range for each of `TEST.AUG.MIN_SIZES`.

    As in the published code the first ranges count where there are more, with a warning.

    Raises:
        InputError: fewer ranges than sizes, or one that is not [least, largest].
    """
    if not all(isinstance(r, (list, tuple)) and len(r) == 2 and 0 <= r[0] < r[1] for r in ranges):
        raise InputError(f"TEST.AUG.SCALE_RANGES is {ranges}; it must list ranges like [0, 96]")
    counts = f"TEST.AUG.SCALE_RANGES has {len(ranges)} ranges for {len(sizes)} TEST.AUG.MIN_SIZES"
    if len(ranges) < len(sizes):
        raise InputError(f"{counts}; give one for each, or set TEST.AUG.SCALE_FILTER to False")
    if len(ranges) > len(sizes):
        logging.getLogger(__name__).warning(f"{counts}: the first ones are used.")


def keep_sizes(detections: Instances, least: float, largest: float) -> Instances:
    """The detections with least < sqrt(width · height) < largest, in pixels of their `pred_boxes`."""
    areas = detections.pred_boxes.area()
    return detections[(areas > least**2) & (areas < largest**2)]


def suppress(detections: Instances, iou_threshold: float) -> Instances:
    """Non-maximum suppression within each class: detections that no better one overlaps by more, best first."""
    boxes = detections.pred_boxes.tensor
    return detections[batched_nms(boxes, detections.scores, detections.pred_classes, iou_threshold)]
