"""Where learned proposals start."""

import pytest
import torch
from torch.testing import assert_close
from torchvision.ops import box_convert, box_iou

from sparsercnn.modeling.initial_boxes import grid


@pytest.mark.parametrize("count", [1, 2, 7, 36, 100])
def test_a_grid_covers_the_image_without_overlap(count):
    boxes = box_convert(grid(count), "cxcywh", "xyxy")
    assert boxes.shape == (count, 4)
    assert_close((boxes[:, 2:] - boxes[:, :2]).prod(1).sum(), torch.tensor(1.0))
    overlaps = box_iou(boxes, boxes)
    assert (overlaps - torch.eye(count)).abs().max() < 1e-4
    assert boxes.min() > -1e-6 and boxes.max() < 1 + 1e-6
