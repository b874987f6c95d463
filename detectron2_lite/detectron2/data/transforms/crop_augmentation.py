"""Augmentations that cut out a part of the image."""

from collections.abc import Sequence

import numpy as np
from fvcore.transforms.transform import CropTransform, NoOpTransform, PadTransform, Transform, TransformList

from detectron2.structures import Boxes, pairwise_iou

from .augmentation import Augmentation
from .transform import ExtentTransform

__all__ = ["FixedSizeCrop", "MinIoURandomCrop", "RandomCrop", "RandomExtent"]


class RandomCrop(Augmentation):
    """Crops a random rectangle of a size given by `crop_type` and `crop_size`.

    Args:
        crop_type: "relative": crop_size (h, w) are shares of the image's size. "relative_range": shares from
            [crop_size, 1]. "absolute": pixels. "absolute_range": both sides from [crop_size[0], crop_size[1]] pixels.
            An absolute size is limited by that of the image.
        crop_size: two numbers, see above.
    """

    def __init__(self, crop_type: str, crop_size: Sequence[float]):
        super().__init__()
        assert crop_type in ["relative_range", "relative", "absolute", "absolute_range"], crop_type
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        h, w = image.shape[:2]
        crop_h, crop_w = self.get_crop_size((h, w))
        assert h >= crop_h and w >= crop_w, f"The crop of {self} is larger than the image ({h}, {w})."
        y = np.random.randint(h - crop_h + 1)
        x = np.random.randint(w - crop_w + 1)
        return CropTransform(x, y, crop_w, crop_h)

    def get_crop_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """(h, w) of a crop from an image of (h, w), in pixels."""
        h, w = image_size
        first, second = self.crop_size
        if self.crop_type == "relative":
            return int(h * first + 0.5), int(w * second + 0.5)
        if self.crop_type == "relative_range":
            low = np.asarray(self.crop_size, dtype=np.float32)
            share_h, share_w = low + np.random.rand(2) * (1 - low)
            return int(h * share_h + 0.5), int(w * share_w + 0.5)
        if self.crop_type == "absolute":
            return min(first, h), min(second, w)
        assert first <= second, self.crop_size
        crop_h = np.random.randint(min(h, first), min(h, second) + 1)
        crop_w = np.random.randint(min(w, first), min(w, second) + 1)
        return crop_h, crop_w


class FixedSizeCrop(Augmentation):
    """Crops a random rectangle of a fixed size; where the image is smaller, pads it at the right and bottom.

    Args:
        crop_size: (h, w).
        pad: whether to pad.
        pad_value: value of padded pixels.
        seg_pad_value: value of padded segmentation labels.
    """

    def __init__(
        self, crop_size: tuple[int, int], pad: bool = True, pad_value: float = 128.0, seg_pad_value: int = 255
    ):
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> TransformList:
        size = np.array(image.shape[:2])
        output = np.array(self.crop_size)
        y, x = np.round(np.maximum(size - output, 0) * np.random.uniform(0.0, 1.0)).astype(int)
        transforms = [CropTransform(x, y, output[1], output[0], size[1], size[0])]
        if self.pad:
            bottom, right = np.maximum(output - size, 0)
            h, w = np.minimum(size, output)
            transforms.append(PadTransform(0, 0, right, bottom, w, h, self.pad_value, self.seg_pad_value))
        return TransformList(transforms)


class RandomExtent(Augmentation):
    """Cuts out a random rectangle that may reach beyond the image (a crop and a zoom in one).

    Args:
        scale_range: range of the rectangle's size relative to the image.
        shift_range: (x, y) shares of the image's size; the center moves by at most half of that in each direction.
    """

    def __init__(self, scale_range: tuple[float, float], shift_range: tuple[float, float]):
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        h, w = image.shape[:2]
        scale = np.random.uniform(self.scale_range[0], self.scale_range[1])
        half = 0.5 * np.array([w, h])
        shift = np.array(self.shift_range) * (w, h) * (np.random.rand(2) - 0.5)
        x0, y0, x1, y1 = rect = np.concatenate([-half * scale + shift + half, half * scale + shift + half]).tolist()
        return ExtentTransform(src_rect=tuple(rect), output_size=(int(y1 - y0), int(x1 - x0)))


class MinIoURandomCrop(Augmentation):
    """Crops so that every box overlaps the crop by a randomly chosen minimum IoU (as SSD's training does).

    Boxes whose center is outside the crop are not removed here.

    Liu et al., SSD: Single Shot MultiBox Detector, ECCV 2016, section 2.2.

    Args:
        min_ious: minimum overlaps to choose from, besides "the whole image" and "any overlap".
        min_crop_size: smallest share of each side of the image.
        mode_trials: how many choices of the minimum overlap to try before giving up.
        crop_trials: how many crops to try for one choice.
    """

    def __init__(
        self,
        min_ious: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9),
        min_crop_size: float = 0.3,
        mode_trials: int = 1000,
        crop_trials: int = 50,
    ):
        self.min_ious = min_ious
        self.sample_mode = (1, *min_ious, 0)
        self.min_crop_size = min_crop_size
        self.mode_trials = mode_trials
        self.crop_trials = crop_trials

    def get_transform(self, image: np.ndarray, boxes: np.ndarray | None) -> Transform:
        if boxes is None:
            return NoOpTransform()
        h, w = image.shape[:2]
        for _ in range(self.mode_trials):
            min_iou = np.random.choice(self.sample_mode)
            if min_iou == 1:
                return NoOpTransform()
            for _ in range(self.crop_trials):
                patch = self._random_patch(h, w)
                if patch is not None and self._fits(patch, np.asarray(boxes, dtype=np.float32), min_iou):
                    return CropTransform(patch[0], patch[1], patch[2] - patch[0], patch[3] - patch[1])
        return NoOpTransform()

    def _random_patch(self, h: int, w: int) -> np.ndarray | None:
        new_w = np.random.uniform(self.min_crop_size * w, w)
        new_h = np.random.uniform(self.min_crop_size * h, h)
        if not 0.5 <= new_h / new_w <= 2:
            return None
        left, top = np.random.uniform(w - new_w), np.random.uniform(h - new_h)
        patch = np.array([left, top, left + new_w, top + new_h]).astype(int)
        return patch if patch[0] < patch[2] and patch[1] < patch[3] else None

    @staticmethod
    def _fits(patch: np.ndarray, boxes: np.ndarray, min_iou: float) -> bool:
        if len(boxes) == 0:
            return True
        overlaps = pairwise_iou(Boxes(patch[None].astype(np.float32)), Boxes(boxes))
        if overlaps.min() < min_iou:
            return False
        centers = (boxes[:, :2] + boxes[:, 2:]) / 2
        return bool(((centers > patch[:2]) & (centers < patch[2:])).all(axis=1).any())
