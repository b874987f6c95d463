"""What an augmentation is: a random choice of a deterministic transform, made with a look at the input."""

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
from fvcore.transforms.transform import Transform, TransformList

__all__ = [
    "Augmentation",
    "AugmentationList",
    "AugInput",
    "TransformGen",
    "StandardAugInput",
    "apply_augmentations",
    "apply_transform_gens",
]


def _check_img_dtype(img: np.ndarray) -> None:
    assert isinstance(img, np.ndarray), f"[Augmentation] Needs an numpy array, but got a {type(img)}!"
    assert not np.issubdtype(img.dtype, np.integer) or img.dtype == np.uint8, (
        f"[Augmentation] Got image of type {img.dtype}, use uint8 or floating points instead!"
    )
    assert img.ndim in (2, 3), img.ndim


def _input_names(aug: "Augmentation") -> tuple[str, ...]:
    """Names of the attributes of `AugInput` that `aug.get_transform` wants, from its signature."""
    parameters = list(inspect.signature(aug.get_transform).parameters.values())
    if len(parameters) == 1:  # one argument is the image whatever it is called
        return ("image",)
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise TypeError(
                f"The default implementation of `{type(aug)}.__call__` does not allow `{type(aug)}.get_transform` "
                "to use variable-length arguments (*args, **kwargs)! "
                "If arguments are unknown, reimplement `__call__` instead."
            )
    return tuple(parameter.name for parameter in parameters)


def _get_aug_input_args(aug: "Augmentation", aug_input: "AugInput") -> list[Any]:
    if aug.input_args is None:
        aug.input_args = _input_names(aug)
    missing = [name for name in aug.input_args if not hasattr(aug_input, name)]
    if missing:
        raise AttributeError(
            f"{type(aug)}.get_transform needs input attribute '{missing[0]}', "
            f"but it is not an attribute of {type(aug_input)}!"
        )
    return [getattr(aug_input, name) for name in aug.input_args]


class Augmentation:
    """Base of augmentations. A subclass implements `get_transform`, which sees the input and returns a `Transform`.

    Attributes:
        input_args: names of the attributes of `AugInput` that are passed to `get_transform`. By default the names
            of its arguments; a single argument is the image.
    """

    input_args: tuple[str, ...] | None = None

    def _init(self, params: dict[str, Any] | None = None) -> None:
        """Set attributes from a dict, typically `locals()` of a constructor; "self" and private names are left out."""
        for name, value in (params or {}).items():
            if name != "self" and not name.startswith("_"):
                setattr(self, name, value)

    def get_transform(self, *args: Any) -> Transform:
        """Choose a transform from the input, usually at random, without changing the input."""
        raise NotImplementedError

    def __call__(self, aug_input: "AugInput") -> Transform:
        """Choose a transform, apply it to `aug_input` in place, and return it for use on other data."""
        transform = self.get_transform(*_get_aug_input_args(self, aug_input))
        assert isinstance(transform, Transform | TransformList), (
            f"{type(self)}.get_transform must return an instance of Transform! Got {type(transform)} instead."
        )
        aug_input.transform(transform)
        return transform

    def _rand_range(self, low: float = 1.0, high: float | None = None, size: Sequence[int] | None = None) -> Any:
        """Uniform random numbers from [low, high), or [0, low) without `high`."""
        if high is None:
            low, high = 0, low
        return np.random.uniform(low, high, [] if size is None else size)

    def __repr__(self) -> str:
        """The constructor call that makes this object, without arguments that have their default."""
        try:
            return Transform.__repr__(self)
        except TypeError:  # how it fails on other classes when an argument is not an attribute
            return super().__repr__()

    __str__ = __repr__


class _TransformToAug(Augmentation):
    """A transform that is always chosen."""

    def __init__(self, tfm: Transform):
        self.tfm = tfm

    def get_transform(self, *args: Any) -> Transform:
        return self.tfm

    def __repr__(self) -> str:
        return repr(self.tfm)

    __str__ = __repr__


def _transform_to_aug(tfm_or_aug: Transform | Augmentation) -> Augmentation:
    assert isinstance(tfm_or_aug, Transform | TransformList | Augmentation), type(tfm_or_aug)
    return tfm_or_aug if isinstance(tfm_or_aug, Augmentation) else _TransformToAug(tfm_or_aug)


class AugmentationList(Augmentation):
    """Augmentations one after another, each seeing what the ones before have made of the input.

    Args:
        augs: augmentations or transforms.
    """

    def __init__(self, augs: Sequence[Augmentation | Transform]):
        super().__init__()
        self.augs = [_transform_to_aug(aug) for aug in augs]

    def __call__(self, aug_input: "AugInput") -> TransformList:
        return TransformList([aug(aug_input) for aug in self.augs])

    def __repr__(self) -> str:
        return f"AugmentationList[{', '.join(map(str, self.augs))}]"

    __str__ = __repr__


class AugInput:
    """What augmentations look at and change.

    A subclass may hold more attributes for augmentations to use, and extend `transform` to them.

    Args:
        image: (H, W) or (H, W, C), uint8 in [0, 255] or floating point.
        boxes: (N, 4) xyxy, absolute.
        sem_seg: (H, W) labels.
    """

    def __init__(self, image: np.ndarray, *, boxes: np.ndarray | None = None, sem_seg: np.ndarray | None = None):
        _check_img_dtype(image)
        self.image = image
        self.boxes = boxes
        self.sem_seg = sem_seg

    def transform(self, tfm: Transform) -> None:
        """Apply `tfm` to every attribute, in place of the old values."""
        self.image = tfm.apply_image(self.image)
        if self.boxes is not None:
            self.boxes = tfm.apply_box(self.boxes)
        if self.sem_seg is not None:
            self.sem_seg = tfm.apply_segmentation(self.sem_seg)

    def apply_augmentations(self, augmentations: Sequence[Augmentation | Transform]) -> TransformList:
        """`AugmentationList(augmentations)(self)`."""
        return AugmentationList(augmentations)(self)


def apply_augmentations(
    augmentations: Sequence[Augmentation | Transform], inputs: np.ndarray | AugInput
) -> tuple[np.ndarray | AugInput, TransformList]:
    """Apply augmentations to an image or an `AugInput`; return what has become of it, and the transforms chosen."""
    if isinstance(inputs, np.ndarray):
        aug_input = AugInput(inputs)
        transforms = aug_input.apply_augmentations(augmentations)
        return aug_input.image, transforms
    transforms = inputs.apply_augmentations(augmentations)
    return inputs, transforms


# Names from before detectron2 0.3.
apply_transform_gens = apply_augmentations
TransformGen = Augmentation
StandardAugInput = AugInput
