"""From an image's description to what the model is trained on, with the augmentation of Sparse R-CNN."""

import copy
import random
from collections.abc import Sequence

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T

from ..config import MAX_PIXELS
from ..errors import InputError
from .images import read_image

# Shorter sides before a random crop, as published (they come from DETR).
CROP_SIZES = (400, 500, 600)


class SparseRCNNDatasetMapper:
    """Resize and flip; or, half of the time, resize to 400–600, crop, resize and flip.

    With `INPUT.SCALE_JITTER`, `large_scale_jitter` takes the place of the resize. `INPUT.COLOR_JITTER` changes colors
    in the end.

    Carion et al., End-to-End Object Detection with Transformers, ECCV 2020, section 4.

    Args:
        is_train: augment, and keep the annotations.
        crop: what comes first with every second image on average; empty for nothing.
        resize: of every image.
        flips: of every image, after that: reading a flipped array row by row, as the resize does, is slow. And what
            changes colors.
        image_format: channel order, see detectron2's `read_image`.
        proposal_topk: best precomputed proposals of each image to keep; None for no proposals.
        max_pixels: an image of more is refused.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        crop: list[T.Augmentation],
        resize: T.Augmentation,
        flips: list[T.Augmentation],
        image_format: str,
        proposal_topk: int | None = None,
        max_pixels: int = MAX_PIXELS,
    ):
        self.is_train = is_train
        self.plain = T.AugmentationList([resize, *flips])
        self.cropped = T.AugmentationList([*crop, resize, *flips]) if crop else None
        self.image_format = image_format
        self.proposal_topk = proposal_topk
        self.max_pixels = max_pixels

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict:
        # detectron2's own choice of flip and resize.
        resize, *flips = utils.build_augmentation(cfg, is_train)
        if is_train and cfg.INPUT.SCALE_JITTER:
            resize = large_scale_jitter(cfg.INPUT.SCALE_JITTER, cfg.INPUT.MAX_SIZE_TRAIN)
        if is_train:
            flips += color_jitter(cfg.INPUT.COLOR_JITTER)
        crop = []
        if is_train and cfg.INPUT.CROP.ENABLED:
            crop = [
                T.ResizeShortestEdge(CROP_SIZES, sample_style="choice"),
                T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE),
            ]
        topk = cfg.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN if is_train else cfg.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST
        return {
            "is_train": is_train,
            "crop": crop,
            "resize": resize,
            "flips": flips,
            "image_format": cfg.INPUT.FORMAT,
            "proposal_topk": topk if cfg.MODEL.LOAD_PROPOSALS else None,
            "max_pixels": cfg.INPUT.MAX_PIXELS,
        }

    def __call__(self, dataset_dict: dict) -> dict:
        """Read the image that a dataset dict describes, and augment it and its annotations.

        Args:
            dataset_dict: one image in detectron2's format; left as it is.

        Returns:
            A copy with `image`, a (3, H, W) uint8 tensor, and in training `instances` instead of `annotations`:
            without crowds and empty boxes, and possibly none at all. `height` and `width` are those of the file.
            Precomputed proposals become `proposals` as detectron2's mapper makes them.

        Raises:
            InputError: the image cannot be read, or has not the size that the annotations say.
        """
        dataset_dict = copy.deepcopy(dataset_dict)
        image = read_image(dataset_dict["file_name"], self.image_format, self.max_pixels)
        try:
            utils.check_image_size(dataset_dict, image)
        except utils.SizeMismatchError as error:
            raise InputError(f"{error}") from error
        augmentations = self.plain
        if self.cropped is not None and random.random() < 0.5:
            augmentations = self.cropped
        inputs = T.AugInput(image)
        transforms = augmentations(inputs)
        # A copy even where the layout fits: arrays made from PIL images are read-only, tensors are not.
        dataset_dict["image"] = torch.from_numpy(np.array(inputs.image.transpose(2, 0, 1), order="C"))
        annotations = dataset_dict.pop("annotations", None)
        if self.proposal_topk is not None:
            size = inputs.image.shape[:2]
            utils.transform_proposals(dataset_dict, size, transforms, proposal_topk=self.proposal_topk)
        if self.is_train and annotations is not None:
            shape = inputs.image.shape[:2]
            kept = [
                utils.transform_instance_annotations(a, transforms, shape) for a in annotations if not a.get("iscrowd")
            ]
            dataset_dict["instances"] = utils.filter_empty_instances(utils.annotations_to_instances(kept, shape))
        return dataset_dict


def color_jitter(strength: float) -> list[T.Augmentation]:
    """Augmentations that change brightness, contrast and saturation of an RGB image by 1 ± `strength` each."""
    if not strength:
        return []
    return [kind(1 - strength, 1 + strength) for kind in (T.RandomBrightness, T.RandomContrast, T.RandomSaturation)]


def large_scale_jitter(factors: Sequence[float], size: int) -> T.AugmentationList:
    """Make the augmentation that scales an image to fit a square times a random factor and cuts it down to the square.

    A smaller image is not padded: the detector pads the batch, with the mean color.

    Tan et al., EfficientDet, CVPR 2020, section 5.1.

    Args:
        factors: smallest and largest factor, uniformly distributed between.
        size: side of the square in pixels.

    Raises:
        InputError: `factors` are not two positive numbers in order.
    """
    if len(factors) != 2 or not 0 < factors[0] <= factors[1]:
        raise InputError(
            f"INPUT.SCALE_JITTER is {factors}; it must be two factors, the smaller first, like (0.1, 2.0), or empty"
        )
    smallest, largest = factors
    return T.AugmentationList([T.ResizeScale(smallest, largest, size, size), T.FixedSizeCrop((size, size), pad=False)])
