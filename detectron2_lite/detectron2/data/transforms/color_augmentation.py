"""Augmentations that change colors and leave everything in its place.

An intensity of 1 leaves the image as it is, below 1 weakens what the class is named after, above 1 strengthens it.
"""

import numpy as np
from fvcore.transforms.transform import BlendTransform, Transform

from .augmentation import Augmentation

__all__ = ["RandomBrightness", "RandomContrast", "RandomLighting", "RandomSaturation"]


class _RandomBlend(Augmentation):
    """Blends the image, with a weight from [intensity_min, intensity_max], with something made from it.

    Args:
        intensity_min, intensity_max: range of the image's weight w; the other image has 1 - w.
    """

    def __init__(self, intensity_min: float, intensity_max: float):
        super().__init__()
        self._init(locals())

    def _counterpart(self, image: np.ndarray) -> np.ndarray | float:
        raise NotImplementedError

    def get_transform(self, image: np.ndarray) -> Transform:
        counterpart = self._counterpart(image)
        w = np.random.uniform(self.intensity_min, self.intensity_max)
        return BlendTransform(src_image=counterpart, src_weight=1 - w, dst_weight=w)


class RandomContrast(_RandomBlend):
    """Blends with the image's mean."""

    def _counterpart(self, image: np.ndarray) -> float:
        return image.mean()


class RandomBrightness(_RandomBlend):
    """Blends with black."""

    def _counterpart(self, image: np.ndarray) -> float:
        return 0


class RandomSaturation(_RandomBlend):
    """Blends with the gray version of an RGB image."""

    def _counterpart(self, image: np.ndarray) -> np.ndarray:
        assert image.shape[-1] == 3, "RandomSaturation only works on RGB images"
        return image.dot([0.299, 0.587, 0.114])[:, :, np.newaxis]


class RandomLighting(Augmentation):
    """Adds noise along the principal components of ImageNet's colors to an RGB image.

    Krizhevsky et al., ImageNet Classification with Deep Convolutional Neural Networks, NIPS 2012, section 4.1.

    Args:
        scale: standard deviation of the noise.
    """

    def __init__(self, scale: float):
        super().__init__()
        self._init(locals())
        self.eigen_vecs = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
        self.eigen_vals = np.array([0.2175, 0.0188, 0.0045])

    def get_transform(self, image: np.ndarray) -> Transform:
        assert image.shape[-1] == 3, "RandomLighting only works on RGB images"
        weights = np.random.normal(scale=self.scale, size=3)
        return BlendTransform(src_image=self.eigen_vecs.dot(weights * self.eigen_vals), src_weight=1.0, dst_weight=1.0)
