"""DatasetMapper: from the description of an image to the model's input."""

import copy

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.data.detection_utils import SizeMismatchError
from detectron2.structures import BoxMode
from PIL import Image


@pytest.fixture
def record(tmp_path):
    pixels = np.random.RandomState(0).randint(0, 256, (20, 30, 3), dtype=np.uint8)
    path = tmp_path / "picture.png"
    Image.fromarray(pixels).save(path)

    def annotation(bbox, category_id, iscrowd=0):
        return {"bbox": bbox, "bbox_mode": BoxMode.XYWH_ABS, "category_id": category_id, "iscrowd": iscrowd}

    return {
        "file_name": str(path),
        "image_id": 5,
        "height": 20,
        "width": 30,
        "annotations": [
            annotation([2, 4, 10, 8], 1),
            annotation([0, 0, 30, 20], 2, iscrowd=1),
            annotation([28, 1, 2, 5], 3),
        ],
    }


def pixels_of(record):
    return np.asarray(Image.open(record["file_name"]))


def test_training(record):
    mapper = DatasetMapper(is_train=True, augmentations=[T.HFlipTransform(30)], image_format="RGB")
    out = mapper(record)
    assert out["image"].shape == (3, 20, 30) and out["image"].dtype == torch.uint8
    assert np.array_equal(out["image"].permute(1, 2, 0).numpy(), pixels_of(record)[:, ::-1])
    instances = out["instances"]
    assert instances.image_size == (20, 30)
    assert instances.gt_classes.tolist() == [1, 3]
    assert instances.gt_boxes.tensor.tolist() == [[18, 4, 28, 12], [0, 1, 2, 6]]
    assert "annotations" not in out
    assert out["image_id"] == 5 and (out["height"], out["width"]) == (20, 30)


def test_inference(record):
    out = DatasetMapper(is_train=False, augmentations=[T.Resize((10, 15))], image_format="BGR")(record)
    assert out["image"].shape == (3, 10, 15)
    assert "annotations" not in out and "instances" not in out
    assert (out["height"], out["width"]) == (20, 30)


def test_image_format(record):
    make = lambda format: DatasetMapper(is_train=False, augmentations=[], image_format=format)(record)["image"]  # noqa: E731
    assert torch.equal(make("BGR"), make("RGB").flip(0))
    assert make("L").shape == (1, 20, 30)


def test_the_record_is_not_changed(record):
    before = copy.deepcopy(record)
    DatasetMapper(is_train=True, augmentations=[T.HFlipTransform(30)], image_format="RGB")(record)
    assert record == before


def test_boxes_cropped_away_are_removed(record):
    crop = T.CropTransform(0, 0, 20, 20)
    instances = DatasetMapper(is_train=True, augmentations=[crop], image_format="RGB")(record)["instances"]
    assert instances.gt_classes.tolist() == [1]
    assert instances.image_size == (20, 20)


def test_wrong_size_is_reported(record):
    record["height"] = 21
    with pytest.raises(SizeMismatchError, match="picture.png"):
        DatasetMapper(is_train=True, augmentations=[], image_format="RGB")(record)


def test_from_config(record, detectron2_log):
    cfg = get_cfg()
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.MIN_SIZE_TRAIN = (40,)
    cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = "choice"
    cfg.INPUT.MIN_SIZE_TEST = 10
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.CROP.TYPE = "absolute"
    cfg.INPUT.CROP.SIZE = [10, 10]
    assert DatasetMapper(cfg, is_train=False)(record)["image"].shape == (3, 10, 15)
    train = DatasetMapper(cfg, is_train=True)
    assert train(record)["image"].shape == (3, 40, 40)
    assert (
        "Augmentations used in training: [RandomCrop(crop_type='absolute', crop_size=[10, 10])" in detectron2_log.text
    )
    assert "Augmentations used in inference: [ResizeShortestEdge" in detectron2_log.text


def test_own_augmentations_with_a_config(record):
    mapper = DatasetMapper(get_cfg(), is_train=True, augmentations=[T.Resize((8, 9))])
    assert mapper(record)["image"].shape == (3, 8, 9)
