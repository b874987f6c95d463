"""Samples of four images: pixels and boxes stay together, and all follows from the random generator."""

import random

import pytest
import torch
from detectron2.structures import Boxes, Instances

from sparsercnn.data.mosaic import GRAY, Mosaic

SIZES = [(60, 80), (90, 50), (20, 30), (60, 80)]


def sample(record):
    """A dark image with a bright box, whose color is the number of the image."""
    number = record["number"]
    height, width = SIZES[number % len(SIZES)]
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    x0, y0, x1, y1 = width // 4, height // 4, width // 4 + 12, height // 4 + 10
    image[:, y0:y1, x0:x1] = 200 + number
    boxes = Boxes(torch.tensor([[x0, y0, x1, y1]], dtype=torch.float32))
    objects = Instances((height, width), gt_boxes=boxes, gt_classes=torch.tensor([number]))
    return {**record, "image": image, "instances": objects}


RECORDS = [{"number": i, "image_id": i} for i in range(8)]


@pytest.mark.parametrize("seed", range(20))
def test_each_box_is_around_the_pixels_of_its_object(seed):
    random.seed(seed)
    mixed = Mosaic(sample, RECORDS, 1.0)(RECORDS[3])
    assert mixed["image"].shape == (3, 60, 80) and mixed["image_id"] == 3
    assert mixed["instances"].image_size == (60, 80)
    for box, number in zip(
        mixed["instances"].gt_boxes.tensor.int().tolist(), mixed["instances"].gt_classes, strict=True
    ):
        x0, y0, x1, y1 = box
        assert 0 <= x0 < x1 <= 80 and 0 <= y0 < y1 <= 60
        assert (mixed["image"][:, y0:y1, x0:x1] == 200 + number).all()


def test_what_no_image_covers_is_gray():
    random.seed(0)
    small = [{"number": 2}]
    mixed = Mosaic(sample, small, 1.0)(RECORDS[0])
    assert (mixed["image"] == GRAY).any()


def test_the_chance_and_the_seed_decide():
    mapper = Mosaic(sample, RECORDS, 0.5)
    random.seed(1)
    first = [mapper(RECORDS[0]) for _ in range(40)]
    random.seed(1)
    second = [mapper(RECORDS[0]) for _ in range(40)]
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(first, second, strict=True))
    alone = sum(torch.equal(x["image"], sample(RECORDS[0])["image"]) for x in first)
    assert 10 < alone < 30
