"""The augmentations: random choices of flips, sizes and rotations; crops and colors are in files of their own."""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from fvcore.transforms.transform import HFlipTransform, NoOpTransform, Transform, VFlipTransform
from PIL import Image

from .augmentation import Augmentation, _transform_to_aug
from .color_augmentation import RandomBrightness, RandomContrast, RandomLighting, RandomSaturation
from .crop_augmentation import FixedSizeCrop, MinIoURandomCrop, RandomCrop, RandomExtent
from .transform import ResizeTransform, RotationTransform

__all__ = [
    "FixedSizeCrop",
    "MinIoURandomCrop",
    "RandomApply",
    "RandomBrightness",
    "RandomContrast",
    "RandomCrop",
    "RandomExtent",
    "RandomFlip",
    "RandomLighting",
    "RandomResize",
    "RandomRotation",
    "RandomSaturation",
    "Resize",
    "ResizeScale",
    "ResizeShortestEdge",
]


class RandomApply(Augmentation):
    """Applies an augmentation or transform with a probability.

    Args:
        tfm_or_aug: what to apply.
        prob: the probability, in [0, 1].
    """

    def __init__(self, tfm_or_aug: Transform | Augmentation, prob: float = 0.5):
        super().__init__()
        self.aug = _transform_to_aug(tfm_or_aug)
        assert 0.0 <= prob <= 1.0, f"Probability must be between 0.0 and 1.0 (given: {prob})"
        self.prob = prob

    def get_transform(self, *args: Any) -> Transform:
        return self.aug.get_transform(*args) if self._rand_range() < self.prob else NoOpTransform()

    def __call__(self, aug_input: Any) -> Transform:
        return self.aug(aug_input) if self._rand_range() < self.prob else NoOpTransform()


class RandomFlip(Augmentation):
    """Flips the image with a probability, either horizontally or vertically.

    Args:
        prob: the probability.
        horizontal, vertical: the direction, exactly one of the two.
    """

    def __init__(self, prob: float = 0.5, *, horizontal: bool = True, vertical: bool = False):
        super().__init__()
        if horizontal and vertical:
            raise ValueError("Cannot do both horiz and vert. Please use two Flip instead.")
        if not horizontal and not vertical:
            raise ValueError("At least one of horiz or vert has to be True!")
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        h, w = image.shape[:2]
        if self._rand_range() >= self.prob:
            return NoOpTransform()
        return HFlipTransform(w) if self.horizontal else VFlipTransform(h)


class Resize(Augmentation):
    """Resizes to a fixed size.

    Args:
        shape: (h, w), or one number for both.
        interp: PIL interpolation method.
    """

    def __init__(self, shape: int | tuple[int, int], interp: int = Image.BILINEAR):
        shape = (shape, shape) if isinstance(shape, int) else tuple(shape)
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        return ResizeTransform(image.shape[0], image.shape[1], self.shape[0], self.shape[1], self.interp)


class ResizeShortestEdge(Augmentation):
    """Scales so that the shorter side gets a chosen length, but the longer side at most `max_size`.

    Args:
        short_edge_length: [min, max] for the style "range", otherwise the lengths to choose from. 0: no resizing.
        max_size: limit of the longer side.
        sample_style: "range" (any integer from min to max) or "choice".
        interp: PIL interpolation method.
    """

    @torch.jit.unused
    def __init__(
        self,
        short_edge_length: int | Sequence[int],
        max_size: int = sys.maxsize,
        sample_style: str = "range",
        interp: int = Image.BILINEAR,
    ):
        super().__init__()
        assert sample_style in ["range", "choice"], sample_style
        self.is_range = sample_style == "range"
        if isinstance(short_edge_length, int):
            short_edge_length = (short_edge_length, short_edge_length)
        if self.is_range:
            assert len(short_edge_length) == 2, (
                f"short_edge_length must be two values using 'range' sample style. Got {short_edge_length}!"
            )
        self._init(locals())

    # Without annotations: scripting `get_output_shape` would compile the types they name.
    @torch.jit.unused
    def get_transform(self, image):
        h, w = image.shape[:2]
        if self.is_range:
            size = np.random.randint(self.short_edge_length[0], self.short_edge_length[1] + 1)
        else:
            size = np.random.choice(self.short_edge_length)
        if size == 0:
            return NoOpTransform()
        new_h, new_w = ResizeShortestEdge.get_output_shape(h, w, size, self.max_size)
        return ResizeTransform(h, w, new_h, new_w, self.interp)

    @staticmethod
    def get_output_shape(oldh: int, oldw: int, short_edge_length: int, max_size: int) -> tuple[int, int]:
        """(h, w) after resizing, each rounded half up. Can be scripted."""
        scale = short_edge_length * 1.0 / min(oldh, oldw)
        if oldh < oldw:
            newh, neww = short_edge_length * 1.0, scale * oldw
        else:
            newh, neww = scale * oldh, short_edge_length * 1.0
        longer = max(newh, neww)
        if longer > max_size:
            scale = max_size * 1.0 / longer
            newh, neww = newh * scale, neww * scale
        return int(newh + 0.5), int(neww + 0.5)


class ResizeScale(Augmentation):
    """Scales to fit into a target size times a random factor ("large scale jitter" before the crop).

    Args:
        min_scale, max_scale: range of the factor.
        target_height, target_width: the target size.
        interp: PIL interpolation method.
    """

    def __init__(
        self,
        min_scale: float,
        max_scale: float,
        target_height: int,
        target_width: int,
        interp: int = Image.BILINEAR,
    ):
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        h, w = image.shape[:2]
        factor = np.random.uniform(self.min_scale, self.max_scale)
        scale = min(self.target_height * factor / h, self.target_width * factor / w)
        new_h, new_w = np.round(np.multiply((h, w), scale)).astype(int)
        return ResizeTransform(h, w, int(new_h), int(new_w), self.interp)


class RandomResize(Augmentation):
    """Resizes to a size chosen at random from a list.

    Args:
        shape_list: (h, w) to choose from.
        interp: PIL interpolation method.
    """

    def __init__(self, shape_list: Sequence[tuple[int, int]], interp: int = Image.BILINEAR):
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        h, w = self.shape_list[np.random.randint(low=0, high=len(self.shape_list))]
        return ResizeTransform(image.shape[0], image.shape[1], h, w, self.interp)


class RandomRotation(Augmentation):
    """Rotates counter-clockwise by a random angle.

    Args:
        angle: degrees: [min, max] for the style "range", otherwise the angles to choose from; or one number.
        expand: whether the image grows to hold all of the rotated one.
        center: points to rotate about, relative to the image size ((0.5, 0.5) is the middle): [[x0, y0], [x1, y1]]
            for the style "range", otherwise a list to choose from; or one point. Without effect if `expand`.
        sample_style: "range" or "choice".
        interp: OpenCV interpolation method.
    """

    def __init__(
        self,
        angle: float | Sequence[float],
        expand: bool = True,
        center: Sequence[Any] | None = None,
        sample_style: str = "range",
        interp: int | None = None,
    ):
        super().__init__()
        assert sample_style in ["range", "choice"], sample_style
        self.is_range = sample_style == "range"
        if isinstance(angle, float | int):
            angle = (angle, angle)
        if center is not None and isinstance(center[0], float | int):
            center = (center, center)
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        h, w = image.shape[:2]
        center = None
        if self.is_range:
            angle = np.random.uniform(self.angle[0], self.angle[1])
            if self.center is not None:
                (x0, y0), (x1, y1) = self.center
                center = np.random.uniform(x0, x1), np.random.uniform(y0, y1)
        else:
            angle = np.random.choice(self.angle)
            if self.center is not None:
                center = self.center[np.random.choice(len(self.center))]
        if angle % 360 == 0:
            return NoOpTransform()
        if center is not None:
            center = (w * center[0], h * center[1])
        return RotationTransform(h, w, angle, expand=self.expand, center=center, interp=self.interp)
