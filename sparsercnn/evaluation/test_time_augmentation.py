"""Test-time augmentation for boxes: the image at several scales and mirrored, detections merged by class-wise NMS."""

import torch
from detectron2.config import CfgNode, configurable
from detectron2.data.detection_utils import read_image
from detectron2.layers import batched_nms
from detectron2.modeling import DatasetMapperTTA
from detectron2.structures import Boxes, Instances
from torch import nn


class SparseRCNNWithTTA(nn.Module):
    """Takes and returns what the detector does, for the union of the views that `TEST.AUG` describes.

    Sparse R-CNN needs no NMS, but several views find the same object several times.

    Args:
        model: the detector.
        tta_mapper: dataset dict with "image" in its original size -> list of augmented dataset dicts with
            "transforms".
        nms_threshold: IoU above which the lower-scored detection of the same class is dropped.
        detections_per_image: number of detections kept.
        image_format: to read "file_name" with.
    """

    @configurable
    def __init__(
        self,
        model: nn.Module,
        *,
        tta_mapper: DatasetMapperTTA,
        nms_threshold: float,
        detections_per_image: int,
        image_format: str,
    ):
        super().__init__()
        self.model = model
        self.tta_mapper = tta_mapper
        self.nms_threshold = nms_threshold
        self.detections_per_image = detections_per_image
        self.image_format = image_format

    @classmethod
    def from_config(cls, cfg: CfgNode, model: nn.Module) -> dict:
        return {
            "model": model,
            "tta_mapper": DatasetMapperTTA(cfg),
            "nms_threshold": cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST,
            "detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "image_format": cfg.INPUT.FORMAT,
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
        return self._merge(Instances.cat(found))

    def _detect_in_view(self, view: dict, original_size: tuple[int, int]) -> Instances:
        """Detections in one augmented view, taken back to the original image."""
        transforms = view.pop("transforms")
        # The transforms lead to the pixels of the view, so the detector's output has to be in these.
        view["height"], view["width"] = view["image"].shape[1:]
        detections = self.model([view])[0]["instances"]
        boxes = transforms.inverse().apply_box(detections.pred_boxes.tensor.float().cpu().numpy())
        result = Instances(original_size, scores=detections.scores, pred_classes=detections.pred_classes)
        result.pred_boxes = Boxes(torch.from_numpy(boxes).to(detections.scores))
        result.pred_boxes.clip(original_size)
        return result

    def _merge(self, detections: Instances) -> Instances:
        boxes = detections.pred_boxes.tensor
        keep = batched_nms(boxes, detections.scores, detections.pred_classes, self.nms_threshold)
        return detections[keep[: self.detections_per_image]]
