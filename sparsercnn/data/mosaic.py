"""Mosaic: a training sample put together from four images."""

import random
from collections.abc import Callable, Sequence

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

# Where the four meet, as a share of the sample's sides.
CENTERS = 0.3, 0.7
# An object stays if so much of its area does.
VISIBLE = 0.3
# Of what no image covers.
GRAY = 114


class Mosaic:
    """A mapper that now and then returns four samples in one, each a part of a quarter.

    Bochkovskiy et al., YOLOv4, 2020, section 3.3. The sample is as large as the first of the four; the others come from
    anywhere in the data set. All are augmented, and none is scaled.

    Args:
        mapper: from an image's description to a sample; augments.
        dataset: descriptions of images, of which three are drawn.
        chance: of four samples instead of one.
    """

    def __init__(self, mapper: Callable[[dict], dict], dataset: Sequence[dict], chance: float):
        self.mapper = mapper
        self.dataset = dataset
        self.chance = chance

    def __call__(self, record: dict) -> dict:
        """The sample of an image, or of it and three others.

        Raises:
            InputError: one of the images cannot be read.
        """
        first = self.mapper(record)
        if random.random() >= self.chance:
            return first
        others = [self.mapper(self.dataset[random.randrange(len(self.dataset))]) for _ in range(3)]
        return {**first, **put_together([first, *others])}


def put_together(samples: Sequence[dict]) -> dict:
    """`image` and `instances` of four samples around a random center, in the size of the first.

    Args:
        samples: upper left, upper right, lower left, lower right; `image` (3, H, W) and `instances` of each.
    """
    _, height, width = samples[0]["image"].shape
    x, y = (round(random.uniform(*CENTERS) * length) for length in (width, height))
    canvas = torch.full_like(samples[0]["image"], GRAY)
    places = [(0, 0, x, y), (x, 0, width, y), (0, y, x, height), (x, y, width, height)]
    parts = [_place(sample, place, canvas) for sample, place in zip(samples, places, strict=True)]
    return {"image": canvas, "instances": Instances.cat(parts)}


def _place(sample: dict, place: tuple[int, int, int, int], canvas: Tensor) -> Instances:
    """Write a random part of a sample into a place of the canvas; its objects there, in pixels of the canvas."""
    x0, y0, x1, y1 = place
    _, height, width = sample["image"].shape
    left, top = (random.randint(0, max(0, length - wanted)) for length, wanted in ((width, x1 - x0), (height, y1 - y0)))
    part = sample["image"][:, top : top + y1 - y0, left : left + x1 - x0]
    canvas[:, y0 : y0 + part.shape[1], x0 : x0 + part.shape[2]] = part
    whole: Tensor = sample["instances"].gt_boxes.tensor
    limits = torch.tensor([left, top, left + part.shape[2], top + part.shape[1]]).to(whole)
    inside = torch.cat([whole[:, :2].clamp(limits[:2], limits[2:]), whole[:, 2:].clamp(limits[:2], limits[2:])], dim=1)
    kept = Boxes(inside).area() > VISIBLE * Boxes(whole).area()
    shift = torch.tensor([x0 - left, y0 - top, x0 - left, y0 - top]).to(whole)
    return Instances(
        (canvas.shape[1], canvas.shape[2]),
        gt_boxes=Boxes((inside + shift)[kept]),
        gt_classes=sample["instances"].gt_classes[kept],
    )
