"""Boxes, box formats, instances and image batches."""

import numpy as np
import pytest
import torch
from detectron2.structures import (
    Boxes,
    BoxMode,
    ImageList,
    Instances,
    pairwise_ioa,
    pairwise_iou,
    pairwise_point_box_distance,
)
from detectron2.structures.boxes import matched_pairwise_iou, pairwise_intersection
from torchvision.ops import box_iou


def some_boxes(n, seed=0):
    boxes = torch.rand(n, 4, generator=torch.Generator().manual_seed(seed)) * 50
    boxes[:, 2:] += boxes[:, :2]
    return Boxes(boxes)


def test_box_mode_numbers_are_those_in_files():
    names = ["XYXY_ABS", "XYWH_ABS", "XYXY_REL", "XYWH_REL", "XYWHA_ABS"]
    assert [BoxMode[name].value for name in names] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("kind", [list, tuple])
def test_convert_one_box_keeps_the_type(kind):
    box = kind([10, 20, 30, 40])
    xyxy = BoxMode.convert(box, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
    assert type(xyxy) is kind and list(xyxy) == [10, 20, 40, 60]
    assert BoxMode.convert(xyxy, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS) == box
    assert list(BoxMode.convert(box, BoxMode.XYWH_ABS, BoxMode.XYWHA_ABS)) == [25, 40, 30, 40, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("as_numpy", [False, True])
def test_convert_many_boxes_keeps_type_dtype_and_input(dtype, as_numpy):
    boxes = torch.tensor([[10.0, 20, 30, 40], [1, 2, 3, 4]], dtype=dtype)
    given = boxes.numpy() if as_numpy else boxes
    before = boxes.clone()
    converted = BoxMode.convert(given, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
    assert type(converted) is type(given) and converted.dtype == given.dtype
    assert converted.tolist() == [[10, 20, 40, 60], [1, 2, 4, 6]]
    assert torch.equal(boxes, before)


def test_rotated_box_becomes_the_box_around_it():
    boxes = torch.tensor([[50, 50, 30, 20, 0], [50, 50, 30, 20, 90], [0, 0, 2**0.5, 2**0.5, -45]])
    expected = torch.tensor([[35.0, 40, 65, 60], [40, 35, 60, 65], [-1, -1, 1, 1]])
    torch.testing.assert_close(BoxMode.convert(boxes, BoxMode.XYWHA_ABS, BoxMode.XYXY_ABS), expected)


def test_conversions_that_do_not_exist():
    with pytest.raises(AssertionError):
        BoxMode.convert([1, 2, 3, 4], BoxMode.XYXY_REL, BoxMode.XYXY_ABS)
    with pytest.raises(AssertionError):
        BoxMode.convert([1, 2, 3], BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
    with pytest.raises(NotImplementedError):
        BoxMode.convert([1, 2, 3, 4], BoxMode.XYXY_ABS, BoxMode.XYWHA_ABS)


def test_boxes_geometry():
    boxes = Boxes([[0.0, 0, 10, 20], [-5, -5, 5, 5], [3, 3, 3, 9]])
    assert boxes.tensor.dtype == torch.float32 and len(boxes) == 3
    assert boxes.area().tolist() == [200, 100, 0]
    assert boxes.get_centers().tolist() == [[5, 10], [0, 0], [3, 6]]
    assert boxes.nonempty().tolist() == [True, True, False]
    assert boxes.nonempty(threshold=10).tolist() == [False, False, False]
    assert boxes.inside_box((30, 30)).tolist() == [True, False, True]
    assert boxes.inside_box((30, 30), boundary_threshold=5).tolist() == [True, True, True]
    boxes.clip((15, 8))  # height, width
    assert boxes.tensor.tolist() == [[0, 0, 8, 15], [0, 0, 5, 5], [3, 3, 3, 9]]
    boxes.scale(2, 0.5)
    assert boxes.tensor[0].tolist() == [0, 0, 16, 7.5]


def test_boxes_is_a_list_of_boxes():
    boxes = some_boxes(5)
    assert len(boxes[1]) == 1 and torch.equal(boxes[1].tensor[0], boxes.tensor[1])
    assert len(boxes[1:4]) == 3
    assert torch.equal(boxes[torch.tensor([4, 0])].tensor, boxes.tensor[[4, 0]])
    assert len(boxes[torch.tensor([True, False, True, False, False])]) == 2
    assert [tuple(box.shape) for box in boxes] == [(4,)] * 5
    joined = Boxes.cat([boxes, boxes[:2]])
    assert len(joined) == 7
    joined.tensor.zero_()
    assert boxes.tensor.abs().sum() > 0
    assert Boxes.cat([]).tensor.shape == Boxes(torch.empty(0)).tensor.shape == (0, 4)
    with pytest.raises(AssertionError):
        boxes[torch.tensor([[0, 1]])]
    with pytest.raises(AssertionError):
        Boxes(torch.rand(2, 5))


def test_boxes_refuse_to_clip_infinite_coordinates():
    with pytest.raises(AssertionError, match="infinite or NaN"):
        Boxes([[0.0, 0, float("inf"), 1]]).clip((5, 5))


def test_pairwise_overlaps():
    a, b = some_boxes(6), some_boxes(4, seed=1)
    torch.testing.assert_close(pairwise_iou(a, b), box_iou(a.tensor, b.tensor))
    inter = pairwise_intersection(a, b)
    torch.testing.assert_close(pairwise_ioa(a, b), inter / b.area())
    torch.testing.assert_close(inter, pairwise_intersection(b, a).T)
    torch.testing.assert_close(matched_pairwise_iou(a[:4], b), pairwise_iou(a[:4], b).diag())
    assert pairwise_iou(a, Boxes.cat([])).shape == (6, 0)
    with pytest.raises(AssertionError):
        matched_pairwise_iou(a, b)


def test_boxes_without_area_overlap_nothing():
    point = Boxes([[1.0, 1, 1, 1]])
    assert pairwise_iou(point, point).tolist() == [[0.0]]
    assert pairwise_ioa(point, point).tolist() == [[0.0]]


def test_point_box_distance():
    distance = pairwise_point_box_distance(torch.tensor([[2.0, 3.0]]), Boxes([[0.0, 0, 10, 20], [5, 5, 6, 6]]))
    assert distance.tolist() == [[[2, 3, 8, 17], [-3, -2, 4, 3]]]


def test_instances_fields():
    instances = Instances((10, 20), gt_boxes=some_boxes(3))
    instances.scores = torch.arange(3.0)
    instances.set("names", ["a", "b", "c"])
    assert len(instances) == 3 and instances.image_size == (10, 20)
    assert instances.has("scores") and not instances.has("nothing")
    assert set(instances.get_fields()) == {"gt_boxes", "scores", "names"}
    instances.remove("names")
    with pytest.raises(AttributeError, match="names"):
        instances.names  # noqa: B018
    with pytest.raises(AssertionError, match="length 2"):
        instances.other = [1, 2]
    assert "num_instances=3, image_height=10, image_width=20" in str(instances)


def test_instances_indexing():
    instances = Instances((10, 20), boxes=some_boxes(3), scores=torch.tensor([0.1, 0.9, 0.6]))
    confident = instances[instances.scores > 0.5]
    assert len(confident) == len(confident.boxes) == 2
    assert torch.equal(instances[-1].scores, torch.tensor([0.6]))
    with pytest.raises(IndexError):
        instances[3]
    with pytest.raises(NotImplementedError):
        iter(instances)
    with pytest.raises(NotImplementedError):
        len(Instances((1, 1)))


def test_instances_cat_and_to():
    instances = Instances((10, 20), boxes=some_boxes(3), ids=[1, 2, 3], scores=torch.rand(3))
    both = Instances.cat([instances, instances[:1]])
    assert len(both) == 4 and both.ids == [1, 2, 3, 1] and len(both.boxes) == 4
    assert both.to("cpu").ids == both.ids
    assert instances.to(torch.device("meta")).boxes.device.type == "meta"
    with pytest.raises(ValueError, match="Unsupported type"):
        Instances.cat([Instances((1, 1), x="ab"), Instances((1, 1), x="cd")])
    with pytest.raises(AssertionError):
        Instances.cat([instances, Instances((9, 9), **instances.get_fields())])


def test_image_list_pads_right_and_bottom():
    images = [torch.rand(3, 5, 9), torch.rand(3, 7, 4)]
    batch = ImageList.from_tensors(images, size_divisibility=4, pad_value=-1.0)
    assert batch.tensor.shape == (2, 3, 8, 12) and len(batch) == 2
    assert [tuple(size) for size in batch.image_sizes] == [(5, 9), (7, 4)]
    for i, image in enumerate(images):
        assert torch.equal(batch[i], image)
    assert (batch.tensor[0, :, 5:] == -1).all() and (batch.tensor[1, :, :, 4:] == -1).all()
    assert batch.to("cpu").device == torch.device("cpu")


def test_image_list_padding_constraints():
    image = torch.rand(3, 5, 9)
    assert ImageList.from_tensors([image]).tensor.shape == (1, 3, 5, 9)
    square = ImageList.from_tensors([image], 4, padding_constraints={"square_size": 30, "size_divisibility": 16})
    assert square.tensor.shape == (1, 3, 32, 32)
    assert ImageList.from_tensors([image], 4, padding_constraints={"size_divisibility": 10}).tensor.shape[-2:] == (
        10,
        10,
    )
    with pytest.raises(AssertionError):
        ImageList.from_tensors([image, torch.rand(1, 5, 9)])


@pytest.mark.filterwarnings("ignore")
def test_image_list_traces_without_fixed_sizes():
    def pad(images: list[torch.Tensor]):
        batch = ImageList.from_tensors(images, 4)
        return batch.tensor, batch.image_sizes[0], batch.image_sizes[1]

    traced = torch.jit.trace(pad, ([torch.ones(3, 16, 10), torch.ones(3, 13, 11)],))
    tensor, size0, size1 = traced([torch.ones(3, 25, 20), torch.ones(3, 10, 10)])
    assert tensor.shape == (2, 3, 28, 20)
    assert (size0.tolist(), size1.tolist()) == ([25, 20], [10, 10])


def area_and_tensor(x: torch.Tensor):
    boxes = Boxes(x)
    return boxes.area(), boxes.to(torch.device("cpu")).tensor


def test_boxes_compile_with_torchscript():
    x = some_boxes(3).tensor
    for scripted, plain in zip(torch.jit.script(area_and_tensor)(x), area_and_tensor(x), strict=True):
        assert torch.equal(scripted, plain)


def test_box_converts_from_any_array_dtype():
    boxes = np.array([[1, 2, 3, 4]], dtype=np.int64)
    assert BoxMode.convert(boxes, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS).dtype == np.int64
