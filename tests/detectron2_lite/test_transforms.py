"""Transforms, and the machinery that augmentations share."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.data import transforms as T
from PIL import Image, ImageOps


def image_of(h, w, channels=3, seed=0):
    return np.random.RandomState(seed).randint(0, 256, (h, w, channels), dtype=np.uint8)


# ---------------------------------------------------------------- transforms


def test_resize_uint8_is_pil():
    image = image_of(20, 30)
    expected = np.asarray(Image.fromarray(image).resize((15, 40), Image.BILINEAR))
    assert np.array_equal(T.ResizeTransform(20, 30, 40, 15).apply_image(image), expected)


@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 1), (20, 30, 3)])
def test_resize_keeps_the_number_of_axes(shape):
    image = np.zeros(shape, dtype=np.uint8)
    assert T.ResizeTransform(20, 30, 10, 15).apply_image(image).shape == (10, 15, *shape[2:])
    assert T.ResizeTransform(20, 30, 10, 15).apply_image(image.astype("float32")).shape == (10, 15, *shape[2:])


def test_resize_float_is_interpolate():
    image = image_of(20, 30).astype("float32")[:, ::-1]  # a view with negative stride
    tensor = torch.from_numpy(image.copy()).permute(2, 0, 1)[None]
    expected = F.interpolate(tensor, (40, 15), mode="bilinear", align_corners=False)[0].permute(1, 2, 0).numpy()
    assert np.array_equal(T.ResizeTransform(20, 30, 40, 15).apply_image(image), expected)


def test_resize_box_and_inverse():
    transform = T.ResizeTransform(20, 30, 40, 15)
    assert np.allclose(transform.apply_box(np.array([[3.0, 4.0, 30.0, 20.0]])), [[1.5, 8, 15, 40]])
    assert np.allclose(transform.inverse().apply_box(np.array([[1.5, 8, 15, 40]])), [[3, 4, 30, 20]])


def test_resize_segmentation_is_nearest():
    segmentation = np.arange(4, dtype=np.uint8).reshape(2, 2)
    resized = T.ResizeTransform(2, 2, 4, 4).apply_segmentation(segmentation)
    assert np.array_equal(resized, segmentation.repeat(2, axis=0).repeat(2, axis=1))


def test_extent_is_a_crop_when_sizes_agree():
    image = image_of(10, 12)
    transform = T.ExtentTransform(src_rect=(2, 3, 8, 9), output_size=(6, 6))
    assert np.array_equal(transform.apply_image(image), image[3:9, 2:8])
    assert np.allclose(transform.apply_coords(np.array([[2.0, 3.0], [8.0, 9.0]])), [[0, 0], [6, 6]])
    larger = T.ExtentTransform(src_rect=(2, 3, 8, 9), output_size=(12, 18))
    assert np.allclose(larger.apply_coords(np.array([[3.0, 4.0]])), [[3, 2]])


def test_rotation_by_90_degrees():
    pytest.importorskip("cv2")
    image = image_of(10, 20)
    transform = T.RotationTransform(10, 20, 90, expand=True)
    assert np.array_equal(transform.apply_image(image), np.rot90(image))
    # counter-clockwise: the upper right corner becomes the upper left one
    assert np.allclose(transform.apply_coords(np.array([[20, 0], [0, 0]])), [[0, 0], [0, 20]])


@pytest.mark.parametrize("angle", [30, -75, 180])
def test_rotation_has_an_inverse_only_when_expanding(angle):
    pytest.importorskip("cv2")
    coords = np.array([[3.0, 4.0], [15.0, 9.0]])
    transform = T.RotationTransform(10, 20, angle, expand=True)
    rotated = transform.apply_coords(coords.copy())
    assert np.allclose(transform.inverse().apply_coords(rotated), coords, atol=1)
    with pytest.raises(NotImplementedError):
        T.RotationTransform(10, 20, angle, expand=False).inverse()


def test_rotation_keeps_its_center():
    pytest.importorskip("cv2")
    transform = T.RotationTransform(10, 20, 33, expand=False, center=(4, 5))
    assert np.allclose(transform.apply_coords(np.array([[4.0, 5.0]])), [[4, 5]])
    assert transform.apply_image(image_of(10, 20)).shape == (10, 20, 3)


def test_color_transforms():
    image = image_of(10, 12)
    assert np.array_equal(T.ColorTransform(lambda x: 255 - x).apply_image(image), 255 - image)
    solarized = T.PILColorTransform(lambda x: ImageOps.solarize(x, 128)).apply_image(image)
    assert np.array_equal(solarized, np.asarray(ImageOps.solarize(Image.fromarray(image), 128)))
    coords = np.array([[1.0, 2.0]])
    assert np.array_equal(T.ColorTransform(lambda x: x).apply_coords(coords), coords)
    with pytest.raises(ValueError, match="callable"):
        T.ColorTransform(1)


# ---------------------------------------------------------------- machinery


class ToHalf(T.Augmentation):
    def get_transform(self, image):
        h, w = image.shape[:2]
        return T.ResizeTransform(h, w, h // 2, w // 2)


class FlipIfBoxes(T.Augmentation):
    def get_transform(self, image, boxes):
        return T.HFlipTransform(image.shape[1]) if len(boxes) else T.NoOpTransform()


def test_augmentations_see_what_earlier_ones_did():
    aug_input = T.AugInput(image_of(20, 30), boxes=np.array([[0.0, 0.0, 10.0, 20.0]]))
    transforms = T.AugmentationList([ToHalf(), FlipIfBoxes()])(aug_input)
    assert aug_input.image.shape == (10, 15, 3)
    assert np.allclose(aug_input.boxes, [[10, 0, 15, 10]])
    assert [type(t) for t in transforms] == [T.ResizeTransform, T.HFlipTransform]
    assert np.allclose(transforms.apply_box(np.array([[0.0, 0.0, 10.0, 20.0]])), [[10, 0, 15, 10]])


def test_apply_augmentations_on_arrays_and_inputs():
    image, transforms = T.apply_augmentations([ToHalf(), T.HFlipTransform(15)], image_of(20, 30))
    assert image.shape == (10, 15, 3) and len(transforms) == 2
    aug_input, _ = T.apply_augmentations([ToHalf()], T.AugInput(image_of(20, 30)))
    assert isinstance(aug_input, T.AugInput) and aug_input.image.shape == (10, 15, 3)


def test_segmentation_goes_with_the_image():
    segmentation = (image_of(20, 30, 1)[:, :, 0] > 128).astype("uint8")
    aug_input = T.AugInput(image_of(20, 30), sem_seg=segmentation)
    aug_input.apply_augmentations([T.RandomFlip(prob=1.0)])
    assert np.array_equal(aug_input.sem_seg, segmentation[:, ::-1])


def test_missing_input_is_named():
    class NeedsDepth(T.Augmentation):
        def get_transform(self, image, depth):
            return T.NoOpTransform()

    with pytest.raises(AttributeError, match="needs input attribute 'depth'"):
        T.AugInput(image_of(5, 5)).apply_augmentations([NeedsDepth()])


def test_variable_arguments_are_refused():
    class Variable(T.Augmentation):
        def get_transform(self, image, **kwargs):
            return T.NoOpTransform()

    with pytest.raises(TypeError, match="variable-length arguments"):
        T.AugInput(image_of(5, 5)).apply_augmentations([Variable()])


def test_get_transform_must_return_a_transform():
    class Wrong(T.Augmentation):
        def get_transform(self, image):
            return image

    with pytest.raises(AssertionError, match="must return an instance of Transform"):
        T.AugInput(image_of(5, 5)).apply_augmentations([Wrong()])


@pytest.mark.parametrize("image", [[[1, 2]], np.zeros((2, 2), dtype=np.uint8).tolist(), np.zeros(4, dtype=np.uint8)])
def test_aug_input_rejects_what_is_no_image(image):
    with pytest.raises(AssertionError):
        T.AugInput(image)


def test_repr_shows_what_differs_from_the_defaults():
    assert str(T.RandomCrop("relative", (100, 100))) == "RandomCrop(crop_type='relative', crop_size=(100, 100))"
    half, default = T.RandomFlip(prob=0.5), T.RandomFlip()
    assert str(default) == "RandomFlip()"
    assert str(T.RandomFlip(prob=0.25)) == "RandomFlip(prob=0.25)"
    assert str(T.AugmentationList([half, default])) == f"AugmentationList[{half}, {default}]"


def test_old_names():
    assert T.TransformGen is T.Augmentation
    image, _ = T.apply_transform_gens([ToHalf()], image_of(20, 30))
    assert image.shape == (10, 15, 3)
