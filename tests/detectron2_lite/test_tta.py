"""Test-time augmentation for boxes."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import DatasetMapperTTA, GeneralizedRCNN, GeneralizedRCNNWithTTA
from detectron2.structures import Boxes, Instances
from PIL import Image
from torch import nn


class BrightestDetector(GeneralizedRCNN):
    """Detects the bounding box of the bright pixels, and counts how many views it sees at once."""

    def __init__(self):
        nn.Module.__init__(self)
        self.roi_heads = nn.Module()
        self.input_format = "RGB"
        self.batch_sizes = []

    def inference(self, batched_inputs, detected_instances=None, do_postprocess=True):
        assert not do_postprocess and detected_instances is None
        self.batch_sizes.append(len(batched_inputs))
        return [self._detect(x["image"]) for x in batched_inputs]

    def _detect(self, image):
        rows, columns = torch.nonzero(image[0] > 128, as_tuple=True)
        box = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
        boxes = torch.stack([box, box, torch.full((4,), float("nan"))])
        size = tuple(image.shape[1:])
        scores, classes = torch.tensor([0.9, 0.5, 0.8]), torch.tensor([1, 2, 1])
        return Instances(size, pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes)


def tta_cfg(min_sizes=(40, 80), max_size=400, flip=True):
    cfg = get_cfg()
    cfg.TEST.AUG.MIN_SIZES = min_sizes
    cfg.TEST.AUG.MAX_SIZE = max_size
    cfg.TEST.AUG.FLIP = flip
    return cfg


def bright_box_image(height=40, width=60, box=(4, 8, 24, 32)):
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    x0, y0, x1, y1 = box
    image[:, y0:y1, x0:x1] = 255
    return image


def test_one_view_per_size_and_flip():
    data = {"image": bright_box_image(), "height": 40, "width": 60, "image_id": 7}
    views = DatasetMapperTTA(tta_cfg())(data)
    assert [tuple(v["image"].shape) for v in views] == [(3, 40, 60)] * 2 + [(3, 80, 120)] * 2
    assert torch.equal(views[1]["image"], views[0]["image"].flip(2))
    assert all(v["image"].dtype == torch.uint8 and v["image_id"] == 7 for v in views)
    assert "transforms" not in data
    assert len(DatasetMapperTTA(tta_cfg(flip=False))(data)) == 2


def test_views_respect_the_maximal_size():
    data = {"image": bright_box_image(), "height": 40, "width": 60}
    (view,) = DatasetMapperTTA(tta_cfg(min_sizes=(80,), max_size=90, flip=False))(data)
    assert tuple(view["image"].shape) == (3, 60, 90)


def test_transforms_start_at_the_original_image():
    """Also when the mapper is given an image that was resized already."""
    data = {"image": bright_box_image(), "height": 400, "width": 600}
    for view in DatasetMapperTTA(tta_cfg())(data):
        corners = view["transforms"].apply_box([[0, 0, 600, 400]])
        assert corners.tolist() == [[0, 0, *view["image"].shape[:0:-1]]]


def test_detections_of_all_views_are_merged_in_the_original_image():
    model = BrightestDetector()
    (out,) = GeneralizedRCNNWithTTA(tta_cfg(), model)([{"image": bright_box_image(), "height": 80, "width": 120}])
    instances = out["instances"]
    assert instances.image_size == (80, 120)
    assert model.batch_sizes == [3, 1]
    # Four views agree on one box; only classes keep it apart.
    assert instances.pred_classes.tolist() == [1, 2]
    torch.testing.assert_close(instances.scores, torch.tensor([0.9, 0.5]))
    expected = torch.tensor([[8.0, 16, 48, 64]]).expand(2, 4)
    torch.testing.assert_close(instances.pred_boxes.tensor, expected, atol=2.1, rtol=0)


def test_number_of_detections_is_limited():
    cfg = tta_cfg()
    cfg.TEST.DETECTIONS_PER_IMAGE = 1
    data = {"image": bright_box_image(), "height": 40, "width": 60}
    (out,) = GeneralizedRCNNWithTTA(cfg, BrightestDetector(), batch_size=1)([data])
    assert out["instances"].pred_classes.tolist() == [1]


def test_image_is_read_from_its_file_in_the_format_of_the_model(tmp_path):
    red = bright_box_image()
    red[1:] = 0
    path = tmp_path / "box.png"
    Image.fromarray(red.permute(1, 2, 0).numpy()).save(path)
    cfg = tta_cfg()
    assert cfg.INPUT.FORMAT == "BGR"  # not what the model, which looks at its first channel, was made for
    model = GeneralizedRCNNWithTTA(cfg, BrightestDetector())
    (from_file,), (from_tensor,) = model([{"file_name": str(path)}]), model([{"image": red, "height": 40, "width": 60}])
    assert from_file["instances"].image_size == (40, 60)
    torch.testing.assert_close(from_file["instances"].pred_boxes.tensor, from_tensor["instances"].pred_boxes.tensor)


def test_keypoints_and_precomputed_proposals_are_refused():
    for key in ("KEYPOINT_ON", "LOAD_PROPOSALS"):
        cfg = tta_cfg()
        cfg.MODEL[key] = True
        with pytest.raises(AssertionError, match="not supported"):
            GeneralizedRCNNWithTTA(cfg, BrightestDetector())


def test_other_models_are_refused():
    with pytest.raises(AssertionError, match="only supported on GeneralizedRCNN. Got a model of type .*Linear"):
        GeneralizedRCNNWithTTA(tta_cfg(), nn.Linear(1, 1))
