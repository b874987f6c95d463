"""The dataset mapper and the image reader under it."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.data import detection_utils as utils
from detectron2.structures import BoxMode
from PIL import Image

from sparsercnn import load_config
from sparsercnn.data import SparseRCNNDatasetMapper
from sparsercnn.data.images import read_image
from sparsercnn.errors import InputError

PHOTOS = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"), "coco128", "train2017")
needs_photos = pytest.mark.skipif(not PHOTOS.is_dir(), reason="no coco128 under DETECTRON2_DATASETS")


def config(**options):
    cfg = load_config()
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = "absolute_range", [384, 600]
    cfg.merge_from_list([x for key, value in options.items() for x in (key.replace("__", "."), value)])
    return cfg


@pytest.fixture
def photo(tmp_path):
    """A smooth 640 × 480 picture with a bright box at (100, 120, 300, 360)."""
    y, x = np.mgrid[:480, :640]
    pixels = np.stack([x // 4, y // 4, (x + y) // 8], axis=-1).astype(np.uint8)
    pixels[120:360, 100:300] = 255
    Image.fromarray(pixels).save(tmp_path / "photo.jpg", quality=95)
    box = {"bbox": [100, 120, 200, 240], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1, "iscrowd": 0}
    crowd = {**box, "iscrowd": 1}
    return {
        "file_name": str(tmp_path / "photo.jpg"),
        "height": 480,
        "width": 640,
        "image_id": 7,
        "annotations": [box, crowd],
    }


def test_boxes_follow_the_image(photo):
    """The bright box is where the annotation says, however the image was flipped, resized and cropped."""
    cfg = config(INPUT__CROP__ENABLED=True, INPUT__MIN_SIZE_TRAIN=(240, 480))
    mapper = SparseRCNNDatasetMapper(cfg, True)
    np.random.seed(0)
    sizes = set()
    for _ in range(20):
        out = mapper(photo)
        sizes.add(tuple(out["image"].shape))
        assert len(out["instances"]) <= 1, "the crowd is left out"
        for x0, y0, x1, y1 in out["instances"].gt_boxes.tensor.round().int().tolist():
            inside = out["image"][:, y0 + 3 : y1 - 3, x0 + 3 : x1 - 3]
            assert inside.float().mean() > 250
            assert out["image"].float().mean() < 250
        assert out["instances"].gt_classes.tolist() == [1] * len(out["instances"])
    assert len(sizes) > 2


def test_scale_jitter(photo):
    """Pictures are scaled to fit the square times a factor, and cut down to it; their boxes with them."""
    cfg = config(INPUT__SCALE_JITTER=(0.1, 2.0), INPUT__MAX_SIZE_TRAIN=256, INPUT__RANDOM_FLIP="none")
    mapper = SparseRCNNDatasetMapper(cfg, True)
    np.random.seed(0)
    factors = []
    for _ in range(60):
        out = mapper(photo)
        height, width = out["image"].shape[1:]
        assert height <= 256 and width <= 256
        if width < 256:  # nothing was cut off
            factors.append(width / 256)
            assert height == pytest.approx(width * 3 / 4, abs=1)
            expected = torch.tensor([[100.0, 120, 300, 360]]) * width / 640
            torch.testing.assert_close(out["instances"].gt_boxes.tensor, expected, rtol=0, atol=1)
        for x0, y0, x1, y1 in out["instances"].gt_boxes.tensor.round().int().tolist():
            assert (out["image"][:, y0 + 3 : y1 - 3, x0 + 3 : x1 - 3] > 240).all()
    assert 15 < len(factors) < 45 and min(factors) < 0.2 and max(factors) > 0.8
    resized = SparseRCNNDatasetMapper(config(INPUT__SCALE_JITTER=(0.1, 2.0), INPUT__MIN_SIZE_TEST=240), False)(photo)
    assert resized["image"].shape == (3, 240, 320), "in training alone"


@pytest.mark.parametrize("factors", [(2.0,), (0.0, 1.0), (2.0, 1.0)])
def test_wrong_scale_jitter(factors):
    with pytest.raises(InputError, match="^INPUT.SCALE_JITTER is .*must be two factors"):
        SparseRCNNDatasetMapper(config(INPUT__SCALE_JITTER=factors), True)


def test_without_crop_the_size_is_one_of_the_choices(photo):
    mapper = SparseRCNNDatasetMapper(config(INPUT__MIN_SIZE_TRAIN=(240, 480)), True)
    assert {tuple(mapper(photo)["image"].shape) for _ in range(20)} == {(3, 240, 320), (3, 480, 640)}


def test_for_inference_annotations_go_and_the_file_size_stays(photo):
    out = SparseRCNNDatasetMapper(config(INPUT__MIN_SIZE_TEST=240), False)(photo)
    assert out["image"].shape == (3, 240, 320) and out["image"].dtype == torch.uint8
    assert (out["height"], out["width"], out["image_id"]) == (480, 640, 7)
    assert "annotations" not in out and "instances" not in out
    assert "annotations" in photo, "the input is left as it is"


def test_mapper_pickles(photo):
    mapper = pickle.loads(pickle.dumps(SparseRCNNDatasetMapper(config(), False)))
    assert mapper(photo)["image"].shape[0] == 3


@needs_photos
def test_photos_read_as_detectron2_reads_them():
    for path in sorted(PHOTOS.glob("*.jpg"))[:8]:
        assert np.array_equal(read_image(str(path), "BGR"), utils.read_image(str(path), "BGR"))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA", "I;16"])
def test_every_kind_of_image_becomes_three_channels(tmp_path, mode):
    gray = Image.fromarray(np.linspace(0, 255, 40 * 30).reshape(30, 40).astype(np.uint8))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(gray).astype(np.uint16) * 256)
    else:
        image = gray.convert(mode)
    path = tmp_path / ("image.jpg" if mode == "CMYK" else "image.png")
    image.save(path)
    array = read_image(str(path), "RGB")
    assert array.shape == (30, 40, 3) and array.dtype == np.uint8
    if mode not in ("1", "P", "CMYK"):
        assert np.abs(array[..., 0].astype(int) - np.asarray(gray)).max() <= 1


def test_sideways_photos_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.zeros((200, 400, 3), np.uint8)
    pixels[:, :200] = 255
    Image.fromarray(pixels).save(tmp_path / "sideways.jpg", exif=exif)
    image = read_image(str(tmp_path / "sideways.jpg"), "RGB")
    assert image.shape == (400, 200, 3)
    top, bottom = image[: len(image) // 3], image[-len(image) // 3 :]
    assert top.mean() > 240 and bottom.mean() < 15


def test_broken_exif_data_is_ignored(tmp_path):
    path = tmp_path / "photo.jpg"
    Image.new("RGB", (40, 30)).save(path, exif=b"Exif\x00\x00MM\x00\x2a\xff\xff\xff\xff broken")
    assert read_image(str(path), "RGB").shape == (30, 40, 3)


@pytest.mark.parametrize(
    "content", [b"", b"not an image", b"\xff\xd8\xff\xe0 truncated"], ids=["empty", "text", "damaged"]
)
def test_an_unreadable_image_is_named(tmp_path, content):
    path = tmp_path / "broken.jpg"
    path.write_bytes(content)
    with pytest.raises(InputError, match="cannot read image .*broken.jpg"):
        read_image(str(path), "RGB")


def test_a_truncated_photo_is_named(photo, tmp_path):
    content = Path(photo["file_name"]).read_bytes()
    Path(photo["file_name"]).write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="cannot read image .*photo.jpg"):
        SparseRCNNDatasetMapper(config(), True)(photo)


def test_the_error_of_a_loader_worker_stays_one_line(tmp_path):
    mapper = SparseRCNNDatasetMapper(config(), True)
    dataset = [{"file_name": str(tmp_path / "missing.jpg"), "height": 1, "width": 1}]
    loader = torch.utils.data.DataLoader(_Mapped(dataset, mapper), num_workers=1, collate_fn=list)
    with pytest.raises(InputError) as error:
        next(iter(loader))
    assert "\n" not in str(error.value) and "missing.jpg" in str(error.value)


class _Mapped(torch.utils.data.Dataset):
    def __init__(self, items, mapper):
        self.items, self.mapper = items, mapper

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.mapper(self.items[index])


def test_built_in_data_sets_are_registered():
    assert {"shapes_train", "shapes_val"} <= set(DatasetCatalog.list())


@pytest.mark.skipif("bccd_train" not in DatasetCatalog.list(), reason="no bccd under DETECTRON2_DATASETS")
def test_bccd_splits_hold_the_three_cells():
    sizes = {split: len(DatasetCatalog.get(f"bccd_{split}")) for split in ("train", "val", "test")}
    assert sizes == {"train": 205, "val": 87, "test": 72}
    classes = {a["category_id"] for image in DatasetCatalog.get("bccd_test") for a in image["annotations"]}
    assert classes == {0, 1, 2}


def test_precomputed_proposals_follow_the_image(photo):
    photo["proposal_boxes"] = np.array([[100.0, 120, 300, 360], [0, 0, 64, 48], [0, 0, 640, 480]])
    photo["proposal_objectness_logits"] = np.array([3.0, 2.0, 1.0])
    photo["proposal_bbox_mode"] = BoxMode.XYXY_ABS
    options = {"MODEL__LOAD_PROPOSALS": True, "DATASETS__PRECOMPUTED_PROPOSAL_TOPK_TEST": 2}
    cfg = config(INPUT__MIN_SIZE_TEST=240, **options)
    mapped = SparseRCNNDatasetMapper(cfg, is_train=False)(photo)
    assert mapped["proposals"].proposal_boxes.tensor.tolist() == [[50, 60, 150, 180], [0, 0, 32, 24]]
    assert mapped["proposals"].objectness_logits.tolist() == [3, 2]
    without = SparseRCNNDatasetMapper(config(INPUT__MIN_SIZE_TEST=240), is_train=False)(photo)
    assert "proposals" not in without


def test_color_jitter_changes_colors_alone(photo):
    options = {"INPUT__MIN_SIZE_TRAIN": (480,), "INPUT__RANDOM_FLIP": "none"}
    plain = SparseRCNNDatasetMapper(config(**options))(photo)
    mapper = SparseRCNNDatasetMapper(config(**options, INPUT__COLOR_JITTER=0.4))
    np.random.seed(0)
    first, second = mapper(photo), mapper(photo)
    assert not torch.equal(first["image"], plain["image"]) and not torch.equal(first["image"], second["image"])
    assert torch.equal(first["instances"].gt_boxes.tensor, plain["instances"].gt_boxes.tensor)
    test_time = SparseRCNNDatasetMapper(config(**options, INPUT__COLOR_JITTER=0.4), is_train=False)
    assert torch.equal(test_time(photo)["image"], test_time(photo)["image"])
