"""From the description of an image in a data set to what a model is given."""

import copy
import logging
from typing import Any

import numpy as np
import torch

from detectron2.config import CfgNode, configurable

from . import detection_utils as utils
from . import transforms as T

__all__ = ["DatasetMapper"]


class DatasetMapper:
    """Reads the image, augments it together with its boxes, and makes tensors of both.

    Args:
        is_train: whether the annotations are wanted.
        augmentations: what to apply, in this order.
        image_format: see `detection_utils.read_image`.
        precomputed_proposal_topk: best precomputed proposals of each image to keep; None for no proposals.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: list[T.Augmentation | T.Transform],
        image_format: str,
        precomputed_proposal_topk: int | None = None,
    ):
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.proposal_topk = precomputed_proposal_topk
        mode = "training" if is_train else "inference"
        logging.getLogger(__name__).info(f"[DatasetMapper] Augmentations used in {mode}: {augmentations}")

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        augmentations = utils.build_augmentation(cfg, is_train)
        if cfg.INPUT.CROP.ENABLED and is_train:
            augmentations.insert(0, T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
        topk = {
            True: cfg.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN,
            False: cfg.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST,
        }
        return {
            "is_train": is_train,
            "augmentations": augmentations,
            "image_format": cfg.INPUT.FORMAT,
            "precomputed_proposal_topk": topk[is_train] if cfg.MODEL.LOAD_PROPOSALS else None,
        }

    def _transform_annotations(
        self, dataset_dict: dict[str, Any], transforms: T.TransformList, image_shape: tuple[int, int]
    ) -> None:
        annos = [
            utils.transform_instance_annotations(obj, transforms, image_shape)
            for obj in dataset_dict.pop("annotations")
            if obj.get("iscrowd", 0) == 0
        ]
        dataset_dict["instances"] = utils.filter_empty_instances(utils.annotations_to_instances(annos, image_shape))

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Map one image.

        Args:
            dataset_dict: in detectron2's standard format. Not changed.

        Returns:
            a copy with "image", (C, H, W) uint8 of the augmented image, and in training "instances" (crowds and
            boxes without area left out) in place of "annotations". Precomputed proposals become "proposals", see
            `detection_utils.transform_proposals`. "width" and "height" are those of the file.
        """
        dataset_dict = copy.deepcopy(dataset_dict)
        image = utils.read_image(dataset_dict["file_name"], format=self.image_format)
        utils.check_image_size(dataset_dict, image)

        aug_input = T.AugInput(image)
        transforms = self.augmentations(aug_input)
        image = aug_input.image
        # A copy even where the layout fits: arrays made from PIL images are read-only, tensors are not.
        dataset_dict["image"] = torch.from_numpy(np.array(image.transpose(2, 0, 1), order="C"))

        if self.proposal_topk is not None:
            utils.transform_proposals(dataset_dict, image.shape[:2], transforms, proposal_topk=self.proposal_topk)
        if not self.is_train:
            dataset_dict.pop("annotations", None)
        elif "annotations" in dataset_dict:
            self._transform_annotations(dataset_dict, transforms, image.shape[:2])
        return dataset_dict
