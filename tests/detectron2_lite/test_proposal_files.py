"""Precomputed proposals: from a file through the loader and the mapper to the model's input."""

import pickle

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.data.build import load_proposals_into_dataset
from detectron2.structures import BoxMode
from PIL import Image

BOXES = np.array([[0, 0, 10, 10], [20, 5, 30, 15], [2, 2, 4, 4]], dtype=np.float32)
LOGITS = np.array([1.0, 3.0, 2.0], dtype=np.float32)


def write(path, **changes) -> str:
    content = {"ids": [7, 8], "boxes": [BOXES, BOXES[:1]], "objectness_logits": [LOGITS, LOGITS[:1]], **changes}
    path.write_bytes(pickle.dumps({key: value for key, value in content.items() if value is not None}))
    return str(path)


@pytest.mark.parametrize("ids", [[7, 8], ["7", "8"]])
def test_proposals_come_best_first(tmp_path, ids):
    records = [{"image_id": 8}, {"image_id": 7}]
    loaded = load_proposals_into_dataset(records, write(tmp_path / "p.pkl", ids=ids))
    assert loaded is records
    assert records[1]["proposal_boxes"].tolist() == BOXES[[1, 2, 0]].tolist()
    assert records[1]["proposal_objectness_logits"].tolist() == [3, 2, 1]
    assert records[1]["proposal_bbox_mode"] == BoxMode.XYXY_ABS
    assert len(records[0]["proposal_boxes"]) == 1


def test_names_of_caffe2_and_another_format(tmp_path):
    path = write(
        tmp_path / "p.pkl", ids=None, objectness_logits=None, indexes=[7, 8], scores=[LOGITS, LOGITS[:1]], bbox_mode=1
    )
    (record,) = load_proposals_into_dataset([{"image_id": 7}], path)
    assert record["proposal_bbox_mode"] == BoxMode.XYWH_ABS
    assert record["proposal_objectness_logits"].tolist() == [3, 2, 1]


def test_an_image_that_the_file_does_not_know(tmp_path):
    with pytest.raises(KeyError, match="9"):
        load_proposals_into_dataset([{"image_id": 9}], write(tmp_path / "p.pkl"))


def with_proposals(**more) -> dict:
    logits = LOGITS[[1, 2, 0]]
    boxes = {"proposal_boxes": BOXES[[1, 2, 0]], "proposal_bbox_mode": BoxMode.XYXY_ABS}
    return {**boxes, "proposal_objectness_logits": logits, **more}


def test_proposals_follow_the_image():
    record = with_proposals()
    utils.transform_proposals(record, (40, 25), T.TransformList([T.HFlipTransform(25)]), proposal_topk=2)
    assert list(record) == ["proposals"]
    proposals = record["proposals"]
    assert proposals.image_size == (40, 25)
    assert proposals.proposal_boxes.tensor.tolist() == [[0, 5, 5, 15], [21, 2, 23, 4]]  # the first one clipped
    assert proposals.objectness_logits.tolist() == [3, 2]


def test_small_proposals_make_room_for_others():
    record = with_proposals()
    utils.transform_proposals(record, (40, 40), T.TransformList([]), proposal_topk=2, min_box_size=2)
    assert record["proposals"].objectness_logits.tolist() == [3, 1]


def test_without_proposals_nothing_happens():
    record = {"image_id": 3}
    utils.transform_proposals(record, (40, 40), T.TransformList([]), proposal_topk=2)
    assert record == {"image_id": 3}


@pytest.fixture
def cfg(tmp_path):
    """Two data sets of one image each, and their proposals."""
    names = ("proposals_test_train", "proposals_test_val")
    Image.fromarray(np.zeros((20, 30, 3), dtype=np.uint8)).save(tmp_path / "image.png")
    annotation = {"bbox": [1, 1, 9, 9], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    for name, image_id in zip(names, (7, 8), strict=True):
        record = {"file_name": str(tmp_path / "image.png"), "image_id": image_id, "height": 20, "width": 30}
        DatasetCatalog.register(name, lambda record=record: [{**record, "annotations": [annotation]}])
    cfg = get_cfg()
    cfg.MODEL.LOAD_PROPOSALS = True
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = names[:1], names[::-1]
    cfg.DATASETS.PROPOSAL_FILES_TRAIN = (write(tmp_path / "train.pkl"),)
    cfg.DATASETS.PROPOSAL_FILES_TEST = (write(tmp_path / "val.pkl"), write(tmp_path / "train_again.pkl", ids=[7, 9]))
    cfg.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN, cfg.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST = 2, 3
    cfg.DATALOADER.NUM_WORKERS, cfg.SOLVER.IMS_PER_BATCH, cfg.INPUT.RANDOM_FLIP = 0, 1, "none"
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (40,), 40
    yield cfg
    for name in names:
        DatasetCatalog.remove(name)


def test_loaders_bring_proposals(cfg):
    (train,) = next(iter(build_detection_train_loader(cfg)))
    assert train["image"].shape == (3, 40, 60)
    assert train["proposals"].proposal_boxes.tensor.tolist() == (BOXES[[1, 2]] * 2).tolist()
    for name, number in (("proposals_test_val", 1), ("proposals_test_train", 3)):
        ((test,),) = list(build_detection_test_loader(cfg, name))
        assert len(test["proposals"]) == number and isinstance(test["proposals"].objectness_logits, torch.Tensor)


def test_without_the_key_there_are_no_proposals(cfg):
    cfg.MODEL.LOAD_PROPOSALS = False
    (train,) = next(iter(build_detection_train_loader(cfg)))
    assert "proposals" not in train
    assert DatasetMapper(cfg, True).proposal_topk is None


def test_each_data_set_needs_its_file(cfg):
    with pytest.raises(AssertionError):
        get_detection_dataset_dicts(list(cfg.DATASETS.TEST), proposal_files=cfg.DATASETS.PROPOSAL_FILES_TEST[:1])
