"""Reading images and turning annotations into Instances."""

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image

PIXELS = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3) * 2


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(PIXELS).save(path)
    return str(path)


def test_read_image_formats(picture):
    assert np.array_equal(utils.read_image(picture), PIXELS)
    assert np.array_equal(utils.read_image(picture, format="RGB"), PIXELS)
    assert np.array_equal(utils.read_image(picture, format="BGR"), PIXELS[:, :, ::-1])
    gray = utils.read_image(picture, format="L")
    assert gray.shape == (5, 7, 1)
    assert np.array_equal(gray[:, :, 0], np.asarray(Image.fromarray(PIXELS).convert("L")))


def test_yuv_is_bt601_and_reversible(picture):
    yuv = utils.read_image(picture, format="YUV-BT.601")
    assert np.allclose(yuv[..., 0], PIXELS / 255.0 @ [0.299, 0.587, 0.114])
    rgb = utils.convert_image_to_rgb(yuv, "YUV-BT.601")
    assert np.abs(rgb - PIXELS).max() < 0.01  # not rounded: truncating to integers would darken the image


@pytest.mark.parametrize("format", ["RGB", "BGR"])
def test_convert_image_to_rgb(picture, format):
    image = utils.read_image(picture, format=format)
    assert np.array_equal(utils.convert_image_to_rgb(image, format), PIXELS)
    assert np.array_equal(utils.convert_image_to_rgb(torch.as_tensor(image.copy()), format), PIXELS)


def test_convert_gray_to_rgb(picture):
    gray = utils.read_image(picture, format="L")
    assert np.array_equal(utils.convert_image_to_rgb(gray, "L"), np.repeat(gray, 3, axis=2))


@pytest.mark.parametrize(
    "orientation, upright",
    [
        (1, lambda x: x),
        (2, lambda x: x[:, ::-1]),
        (3, lambda x: x[::-1, ::-1]),
        (4, lambda x: x[::-1]),
        (5, lambda x: x.transpose(1, 0, 2)),
        (6, lambda x: np.rot90(x, -1)),
        (7, lambda x: x[::-1, ::-1].transpose(1, 0, 2)),
        (8, lambda x: np.rot90(x)),
    ],
)
def test_exif_orientation_is_applied(tmp_path, orientation, upright):
    image = Image.fromarray(PIXELS)
    exif = image.getexif()
    exif[274] = orientation
    image.save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(utils.read_image(str(tmp_path / "turned.png"), format="RGB"), upright(PIXELS))


def test_image_size_is_filled_in_or_compared():
    record = {"file_name": "a.jpg"}
    utils.check_image_size(record, PIXELS)
    assert (record["width"], record["height"]) == (7, 5)
    utils.check_image_size(record, PIXELS)
    record["width"] = 8
    with pytest.raises(utils.SizeMismatchError, match=r"a.jpg, got \(7, 5\), expect \(8, 5\)"):
        utils.check_image_size(record, PIXELS)


def annotation(bbox=(10, 20, 30, 40), category_id=3, **kwargs):
    return {"bbox": list(bbox), "bbox_mode": BoxMode.XYWH_ABS, "category_id": category_id, **kwargs}


def test_boxes_are_transformed_and_clipped():
    transforms = T.TransformList([T.HFlipTransform(100), T.ResizeTransform(50, 100, 100, 50)])
    out = utils.transform_instance_annotations(annotation(), transforms, (100, 50))
    assert np.allclose(out["bbox"], [30, 40, 45, 100])  # y1 would be 120
    assert out["bbox_mode"] == BoxMode.XYXY_ABS and out["category_id"] == 3
    as_list = utils.transform_instance_annotations(annotation(), list(transforms), (100, 50))
    assert np.array_equal(as_list["bbox"], out["bbox"])


def test_boxes_do_not_become_negative():
    out = utils.transform_instance_annotations(
        annotation((10, 20, 30, 40)), [T.CropTransform(25, 30, 50, 50)], (50, 50)
    )
    assert np.allclose(out["bbox"], [0, 0, 15, 30])


def test_annotations_to_instances():
    instances = utils.annotations_to_instances([annotation(), annotation((0, 0, 5, 6), 1)], (50, 100))
    assert instances.image_size == (50, 100)
    assert instances.gt_boxes.tensor.tolist() == [[10, 20, 40, 60], [0, 0, 5, 6]]
    assert instances.gt_classes.tolist() == [3, 1]
    assert instances.gt_classes.dtype == torch.int64 and instances.gt_boxes.tensor.dtype == torch.float32


def test_no_annotations_make_empty_instances():
    instances = utils.annotations_to_instances([], (50, 100))
    assert len(instances) == 0
    assert instances.gt_boxes.tensor.shape == (0, 4) and instances.gt_classes.dtype == torch.int64
    assert len(utils.filter_empty_instances(instances)) == 0


def test_boxes_without_area_are_filtered():
    boxes = Boxes(torch.tensor([[0.0, 0, 5, 5], [3, 3, 3, 9], [1, 1, 4, 1.000001], [2, 2, 3, 3]]))
    instances = Instances((10, 10), gt_boxes=boxes, gt_classes=torch.arange(4))
    assert utils.filter_empty_instances(instances).gt_classes.tolist() == [0, 3]
    kept, mask = utils.filter_empty_instances(instances, box_threshold=2, return_mask=True)
    assert kept.gt_classes.tolist() == [0] and mask.tolist() == [True, False, False, False]


def test_crop_around_an_instance_contains_its_center():
    for seed in range(30):
        np.random.seed(seed)
        crop = utils.gen_crop_transform_with_instance((20, 15), (60, 80), annotation((50, 30, 10, 20)))
        assert (crop.h, crop.w) == (20, 15)
        assert 0 <= crop.x0 <= 55 <= crop.x0 + 15 <= 80
        assert 0 <= crop.y0 <= 40 <= crop.y0 + 20 <= 60


def test_crop_around_an_instance_must_fit():
    with pytest.raises(AssertionError, match="outside of the image"):
        utils.gen_crop_transform_with_instance((5, 5), (10, 10), annotation((50, 30, 10, 20)))
    with pytest.raises(AssertionError, match="larger than image"):
        utils.gen_crop_transform_with_instance((50, 50), (40, 40), annotation((5, 5, 10, 10)))


def test_metadata_consistency():
    names = ["consistency_test_a", "consistency_test_b", "consistency_test_c"]
    for name, classes in zip(names, (["x"], ["x"], ["y"]), strict=True):
        MetadataCatalog.get(name).thing_classes = classes
    try:
        utils.check_metadata_consistency("thing_classes", names[:2])
        with pytest.raises(ValueError, match="different metadata 'thing_classes'"):
            utils.check_metadata_consistency("thing_classes", names)
    finally:
        for name in names:
            MetadataCatalog.remove(name)


def test_build_augmentation():
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TRAIN = (64, 96)
    cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = "choice"
    cfg.INPUT.MAX_SIZE_TRAIN = 128
    cfg.INPUT.MIN_SIZE_TEST = 80
    resize, flip = utils.build_augmentation(cfg, is_train=True)
    assert (tuple(resize.short_edge_length), resize.max_size, resize.is_range) == ((64, 96), 128, False)
    assert flip.horizontal and not flip.vertical
    (resize,) = utils.build_augmentation(cfg, is_train=False)
    assert (tuple(resize.short_edge_length), resize.max_size) == ((80, 80), cfg.INPUT.MAX_SIZE_TEST)
    cfg.INPUT.RANDOM_FLIP = "vertical"
    assert utils.build_augmentation(cfg, is_train=True)[1].vertical
    cfg.INPUT.RANDOM_FLIP = "none"
    assert len(utils.build_augmentation(cfg, is_train=True)) == 1
