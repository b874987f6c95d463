"""Test-time augmentation for boxes: several sizes and mirror images of one image, merged by NMS."""

import copy

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from detectron2.config import CfgNode, configurable
from detectron2.data.detection_utils import read_image
from detectron2.data.transforms import (
    NoOpTransform,
    RandomFlip,
    ResizeShortestEdge,
    ResizeTransform,
    apply_augmentations,
)
from detectron2.layers import batched_nms
from detectron2.structures import Boxes, Instances

from .meta_arch import GeneralizedRCNN

__all__ = ["DatasetMapperTTA", "GeneralizedRCNNWithTTA"]

# Detections below this score are dropped before merging: practically none.
_SCORE_THRESHOLD = 1e-8


class DatasetMapperTTA:
    """Maps one image in dataset format to several augmented views of it.

    Args:
        min_sizes: shorter side of each view, in pixels.
        max_size: limit of the longer side.
        flip: also make the mirror image of each view.
    """

    @configurable
    def __init__(self, min_sizes: list[int], max_size: int, flip: bool) -> None:
        self.min_sizes = min_sizes
        self.max_size = max_size
        self.flip = flip

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {
            "min_sizes": cfg.TEST.AUG.MIN_SIZES,
            "max_size": cfg.TEST.AUG.MAX_SIZE,
            "flip": cfg.TEST.AUG.FLIP,
        }

    def __call__(self, dataset_dict: dict) -> list[dict]:
        """
        Args:
            dataset_dict: "image", a (C, H, W) uint8 tensor, maybe already resized, and the "height" and "width" of the
                original image.

        Returns:
            Copies of the dict, one per view, in which "image" is the view, and "transforms" leads from the original
            image to it.
        """
        image = dataset_dict["image"].permute(1, 2, 0).numpy()
        height, width = image.shape[:2]
        original_size = (dataset_dict["height"], dataset_dict["width"])
        if original_size == (height, width):
            pre_transform = NoOpTransform()
        else:
            pre_transform = ResizeTransform(*original_size, height, width)

        candidates = []
        for min_size in self.min_sizes:
            resize = ResizeShortestEdge(min_size, self.max_size)
            candidates.append([resize])
            if self.flip:
                candidates.append([resize, RandomFlip(prob=1.0)])

        views = []
        for augmentations in candidates:
            new_image, transforms = apply_augmentations(augmentations, np.copy(image))
            view = copy.deepcopy(dataset_dict)
            view["transforms"] = pre_transform + transforms
            view["image"] = torch.from_numpy(np.ascontiguousarray(new_image.transpose(2, 0, 1)))
            views.append(view)
        return views


class GeneralizedRCNNWithTTA(nn.Module):
    """Takes and returns what the detector does, but merges its detections on several views of each image.

    Args:
        cfg: reads `MODEL.ROI_HEADS.NMS_THRESH_TEST`, `TEST.DETECTIONS_PER_IMAGE`.
        model: a `GeneralizedRCNN`. Images that are given by their file name are read in its `input_format`.
        tta_mapper: makes the views; by default `DatasetMapperTTA(cfg)`.
        batch_size: views in one forward pass.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module, tta_mapper=None, batch_size: int = 3) -> None:
        super().__init__()
        if isinstance(model, DistributedDataParallel):
            model = model.module
        assert isinstance(model, GeneralizedRCNN), (
            f"TTA is only supported on GeneralizedRCNN. Got a model of type {type(model)}"
        )
        assert not cfg.MODEL.KEYPOINT_ON, "TTA for keypoint is not supported yet"
        assert not cfg.MODEL.MASK_ON, "TTA for masks is not supported"
        assert not cfg.MODEL.LOAD_PROPOSALS, "TTA for pre-computed proposals is not supported yet"
        self.cfg = cfg.clone()
        self.model = model
        self.tta_mapper = DatasetMapperTTA(cfg) if tta_mapper is None else tta_mapper
        self.batch_size = batch_size

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """
        Args:
            batched_inputs: dicts with "image", or with "file_name" to read it from; "height" and "width" of the
                original image default to the size of "image".

        Returns:
            {"instances": Instances} for each image, in its original resolution.
        """
        return [self._inference_one_image(self._with_image(x)) for x in batched_inputs]

    def _with_image(self, dataset_dict: dict) -> dict:
        dataset_dict = copy.copy(dataset_dict)
        if "image" not in dataset_dict:
            image = read_image(dataset_dict.pop("file_name"), self.model.input_format)
            dataset_dict["image"] = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        if "height" not in dataset_dict and "width" not in dataset_dict:
            dataset_dict["height"], dataset_dict["width"] = dataset_dict["image"].shape[1:]
        return dataset_dict

    def _inference_one_image(self, dataset_dict: dict) -> dict:
        views = self.tta_mapper(dataset_dict)
        transforms = [view.pop("transforms") for view in views]
        outputs = []
        for start in range(0, len(views), self.batch_size):
            batch = views[start : start + self.batch_size]
            outputs.extend(self.model.inference(batch, None, do_postprocess=False))

        boxes = []
        for output, transform in zip(outputs, transforms, strict=True):
            view_boxes = output.pred_boxes.tensor
            original = transform.inverse().apply_box(view_boxes.cpu().numpy())
            boxes.append(torch.from_numpy(original).to(view_boxes.device))
        scores = torch.cat([output.scores for output in outputs])
        classes = torch.cat([output.pred_classes for output in outputs])
        image_size = (dataset_dict["height"], dataset_dict["width"])
        return {"instances": self._merge_detections(torch.cat(boxes), scores, classes, image_size)}

    def _merge_detections(
        self, boxes: Tensor, scores: Tensor, classes: Tensor, image_size: tuple[int, int]
    ) -> Instances:
        """The best detections that survive NMS within each class."""
        valid = boxes.isfinite().all(dim=1) & (scores > _SCORE_THRESHOLD) & scores.isfinite()
        merged = Instances(
            image_size, pred_boxes=Boxes(boxes[valid]), scores=scores[valid], pred_classes=classes[valid]
        )
        merged.pred_boxes.clip(image_size)
        keep = batched_nms(
            merged.pred_boxes.tensor, merged.scores, merged.pred_classes, self.cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST
        )
        return merged[keep[: self.cfg.TEST.DETECTIONS_PER_IMAGE]]
