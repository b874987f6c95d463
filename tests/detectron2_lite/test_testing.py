"""Random boxes have an area; instances that differ are told apart, by what differs."""

import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.testing import assert_instances_allclose, random_boxes


def instances(size=(10, 20), **changes) -> Instances:
    fields = {"pred_boxes": Boxes(torch.tensor([[1.0, 2, 3, 4]])), "scores": torch.tensor([0.5])}
    return Instances(size, **{**fields, "pred_classes": torch.tensor([3]), **changes})


def test_random_boxes():
    boxes = random_boxes(200, 50)
    assert boxes.shape == (200, 4) and boxes.min() >= 1 and boxes.max() <= 50
    assert (boxes[:, 2:] - boxes[:, :2]).min() >= 1 - 1e-5


def test_equal_instances_pass():
    assert_instances_allclose(instances(), instances())
    assert_instances_allclose(instances(scores=torch.tensor([0.500001])), instances())
    assert_instances_allclose(instances(size=torch.tensor([10, 20])), instances(), size_as_tensor=True)


@pytest.mark.parametrize(
    "other",
    [
        instances(size=(10, 21)),
        instances(scores=torch.tensor([0.6])),
        instances(pred_classes=torch.tensor([2])),
        instances(pred_boxes=Boxes(torch.tensor([[1.0, 2, 3, 4.1]]))),
        Instances((10, 20), scores=torch.tensor([0.5])),
    ],
)
def test_different_ones_fail(other):
    with pytest.raises((AssertionError, ValueError)):
        assert_instances_allclose(instances(), other)
