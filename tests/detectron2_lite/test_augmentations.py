"""The augmentations: which transforms they choose."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.data import transforms as T


def image_of(h, w, channels=3, seed=0):
    return np.random.RandomState(seed).randint(0, 256, (h, w, channels), dtype=np.uint8)


class ToHalf(T.Augmentation):
    def get_transform(self, image):
        h, w = image.shape[:2]
        return T.ResizeTransform(h, w, h // 2, w // 2)


def transform_of(aug, image, *args, seed=0):
    np.random.seed(seed)
    return aug.get_transform(image, *args)


def test_random_flip():
    image = image_of(10, 12)
    assert isinstance(transform_of(T.RandomFlip(prob=0.0), image), T.NoOpTransform)
    assert isinstance(transform_of(T.RandomFlip(prob=1.0), image), T.HFlipTransform)
    vertical = transform_of(T.RandomFlip(prob=1.0, horizontal=False, vertical=True), image)
    assert np.array_equal(vertical.apply_image(image), image[::-1])
    with pytest.raises(ValueError, match="Cannot do both"):
        T.RandomFlip(horizontal=True, vertical=True)
    with pytest.raises(ValueError, match="At least one"):
        T.RandomFlip(horizontal=False)


def test_random_apply():
    image = image_of(10, 12)
    flip = T.HFlipTransform(12)
    assert transform_of(T.RandomApply(flip, prob=1.0), image) is flip
    assert isinstance(transform_of(T.RandomApply(flip, prob=0.0), image), T.NoOpTransform)
    assert isinstance(transform_of(T.RandomApply(ToHalf(), prob=1.0), image), T.ResizeTransform)
    aug_input = T.AugInput(image)
    T.RandomApply(ToHalf(), prob=1.0)(aug_input)
    assert aug_input.image.shape == (5, 6, 3)
    with pytest.raises(AssertionError):
        T.RandomApply(flip, prob=1.1)


@pytest.mark.parametrize(
    "size, short, max_size, expected",
    [
        ((480, 640), 800, 1333, (800, 1067)),
        ((640, 480), 800, 1333, (1067, 800)),
        ((400, 1200), 800, 1333, (444, 1333)),
        ((333, 500), 480, 1333, (480, 721)),
        ((100, 100), 33, 1333, (33, 33)),
        ((427, 640), 800, 1000, (667, 1000)),
    ],
)
def test_resize_shortest_edge_shape(size, short, max_size, expected):
    assert tuple(T.ResizeShortestEdge.get_output_shape(*size, short, max_size)) == expected
    transform = T.ResizeShortestEdge(short, max_size).get_transform(np.zeros(size, dtype=np.uint8))
    assert (transform.new_h, transform.new_w) == expected


def test_resize_shortest_edge_shape_can_be_scripted():
    def resized(image: torch.Tensor):
        h, w = T.ResizeShortestEdge.get_output_shape(image.shape[-2], image.shape[-1], 80, 133)
        return F.interpolate(image[None], size=(h, w))

    scripted = torch.jit.script(resized)
    for shape in ((3, 10, 10), (3, 8, 40)):
        image = torch.randn(shape)
        assert torch.equal(resized(image), scripted(image))


def test_resize_shortest_edge_sampling():
    image = image_of(10, 12)
    lengths = {transform_of(T.ResizeShortestEdge((20, 23)), image, seed=i).new_h for i in range(50)}
    assert lengths == {20, 21, 22, 23}
    lengths = {
        transform_of(T.ResizeShortestEdge((20, 23, 40), sample_style="choice"), image, seed=i).new_h for i in range(50)
    }
    assert lengths == {20, 23, 40}
    assert isinstance(T.ResizeShortestEdge(0).get_transform(image), T.NoOpTransform)
    with pytest.raises(AssertionError):
        T.ResizeShortestEdge((20, 23, 40), sample_style="range")


def test_resize_and_random_resize():
    image = image_of(10, 12)
    assert T.Resize(7).get_transform(image).apply_image(image).shape == (7, 7, 3)
    assert T.Resize((7, 9)).get_transform(image).apply_image(image).shape == (7, 9, 3)
    shapes = {transform_of(T.RandomResize([(5, 6), (7, 8)]), image, seed=i).apply_image(image).shape for i in range(20)}
    assert shapes == {(5, 6, 3), (7, 8, 3)}


def test_resize_scale_fits_the_target():
    transform = T.ResizeScale(0.5, 0.5, target_height=100, target_width=80).get_transform(image_of(10, 20))
    assert (transform.new_h, transform.new_w) == (20, 40)


@pytest.mark.parametrize(
    "crop_type, crop_size, lowest, highest",
    [
        ("relative", (0.5, 0.25), (20, 15), (20, 15)),
        ("relative_range", (0.5, 0.25), (20, 15), (40, 60)),
        ("absolute", (10, 100), (10, 60), (10, 60)),
        ("absolute_range", (10, 50), (10, 10), (40, 50)),
    ],
)
def test_random_crop_sizes(crop_type, crop_size, lowest, highest):
    image = image_of(40, 60)
    sizes = np.array(
        [
            transform_of(T.RandomCrop(crop_type, crop_size), image, seed=i).apply_image(image).shape[:2]
            for i in range(200)
        ]
    )
    assert (sizes >= lowest).all() and (sizes <= highest).all()
    if lowest != highest:
        assert len(np.unique(sizes, axis=0)) > 10


def test_random_crop_reaches_every_place():
    image = image_of(5, 6)
    corners = {
        (t.y0, t.x0) for t in (transform_of(T.RandomCrop("absolute", (4, 4)), image, seed=i) for i in range(100))
    }
    assert corners == {(y, x) for y in range(2) for x in range(3)}


def test_fixed_size_crop_crops_and_pads():
    image = image_of(30, 10)
    transforms = transform_of(T.FixedSizeCrop((20, 20), pad_value=7.0), image)
    out = transforms.apply_image(image)
    assert out.shape == (20, 20, 3)
    assert (out[:, 10:] == 7).all()
    assert any(np.array_equal(out[:, :10], image[y : y + 20]) for y in range(11))
    assert T.FixedSizeCrop((20, 20), pad=False).get_transform(image).apply_image(image).shape == (20, 10, 3)


def test_random_extent_without_randomness_is_a_zoom():
    transform = T.RandomExtent(scale_range=(2, 2), shift_range=(0, 0)).get_transform(image_of(10, 20))
    assert transform.src_rect == (-10, -5, 30, 15)
    assert transform.output_size == (20, 40)


def test_random_rotation():
    pytest.importorskip("cv2")
    image = image_of(10, 20)
    assert isinstance(T.RandomRotation(0).get_transform(image), T.NoOpTransform)
    angles = [transform_of(T.RandomRotation([10, 20]), image, seed=i).angle for i in range(20)]
    assert all(10 <= angle <= 20 for angle in angles) and len(set(angles)) > 10
    assert {
        transform_of(T.RandomRotation([10, 20], sample_style="choice"), image, seed=i).angle for i in range(20)
    } == {10, 20}
    center = T.RandomRotation(30, expand=False, center=(0.25, 0.5)).get_transform(image).center
    assert np.allclose(center, (5, 5))


def test_min_iou_crop_keeps_overlaps():
    image = image_of(60, 80)
    boxes = np.array([[10.0, 10.0, 50.0, 50.0], [30.0, 5.0, 75.0, 55.0]])
    crops = [transform_of(T.MinIoURandomCrop(), image, boxes, seed=i) for i in range(50)]
    crops = [crop for crop in crops if isinstance(crop, T.CropTransform)]
    assert crops
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    for crop in crops:
        assert crop.w >= 0.3 * 80 - 1 and crop.h >= 0.3 * 60 - 1
        inside = (centers > (crop.x0, crop.y0)) & (centers < (crop.x0 + crop.w, crop.y0 + crop.h))
        assert inside.all(axis=1).any()
    assert isinstance(T.MinIoURandomCrop().get_transform(image, None), T.NoOpTransform)


def test_color_augmentations_at_fixed_intensity():
    image = image_of(10, 12).astype("float32")
    same = [T.RandomBrightness(1, 1), T.RandomContrast(1, 1), T.RandomSaturation(1, 1), T.RandomLighting(0)]
    for aug in same:
        assert np.allclose(aug.get_transform(image).apply_image(image.copy()), image, atol=1e-4)
    assert np.allclose(T.RandomBrightness(0.5, 0.5).get_transform(image).apply_image(image.copy()), image / 2)
    assert np.allclose(T.RandomContrast(0, 0).get_transform(image).apply_image(image.copy()), image.mean(), atol=1e-3)
    gray = T.RandomSaturation(0, 0).get_transform(image).apply_image(image.copy())
    assert np.allclose(gray[..., 0], image @ [0.299, 0.587, 0.114], atol=1e-3)
    assert np.allclose(gray, gray[..., :1])


def test_lighting_adds_one_color_to_all_pixels():
    image = image_of(10, 12).clip(64, 192)
    change = transform_of(T.RandomLighting(5.0), image).apply_image(image).astype(int) - image
    assert (change.reshape(-1, 3).max(axis=0) - change.reshape(-1, 3).min(axis=0) <= 1).all()
    assert (change != 0).any()
