"""RoI pooling from a pyramid: levels, features and gradients."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.layers import ROIAlign
from detectron2.modeling.poolers import ROIPooler, assign_boxes_to_levels, convert_boxes_to_pooler_format
from detectron2.structures import Boxes

GOLDEN = Path(__file__).parent.parent / "golden"
SCALES = [1 / 4, 1 / 8, 1 / 16, 1 / 32]


def square(side: float) -> list[float]:
    return [0.0, 0.0, side, side]


def test_reference_levels_features_and_gradients():
    golden = {k: torch.from_numpy(v) for k, v in np.load(GOLDEN / "roi_pooler.npz").items()}
    features = [golden[f"input/p{i}"].requires_grad_() for i in range(2, 6)]
    boxes = [Boxes(golden[f"input/boxes/{i}"]) for i in range(2)]
    levels = assign_boxes_to_levels(boxes, 2, 5, 224, 4)
    assert torch.equal(levels, golden["levels"])

    pooled = ROIPooler(7, SCALES, sampling_ratio=2, pooler_type="ROIAlignV2")(features, boxes)
    torch.testing.assert_close(pooled, golden["output"], atol=1e-4, rtol=0)
    pooled.backward(golden["grad_output"])
    for i, feature in enumerate(features, start=2):
        torch.testing.assert_close(feature.grad, golden[f"grad/p{i}"], atol=1e-4, rtol=0)


def test_levels_change_at_powers_of_two_of_the_canonical_size():
    sides = [0, 10, 112 - 0.1, 112, 223.9, 224, 447.9, 448, 5000]
    levels = assign_boxes_to_levels([Boxes([square(s) for s in sides])], 2, 5, 224, 4)
    assert (levels + 2).tolist() == [2, 2, 2, 3, 3, 4, 4, 5, 5]


def test_levels_follow_the_canonical_size_and_level():
    levels = assign_boxes_to_levels([Boxes([square(64)]), Boxes([[0.0, 0, 16, 64]])], 3, 7, 32, 5)
    assert (levels + 3).tolist() == [5 + 1, 5]


def test_pooler_format_prefixes_the_image_index():
    boxes = [torch.rand(2, 4), torch.rand(0, 4), torch.rand(1, 4)]
    rois = convert_boxes_to_pooler_format([Boxes(b) for b in boxes])
    assert rois[:, 0].tolist() == [0, 0, 2]
    assert torch.equal(rois[:, 1:], torch.cat(boxes))


def test_each_box_is_pooled_from_its_level_in_order_of_images():
    features = [torch.full((2, 3, 512 // 2**i, 512 // 2**i), float(i)) for i in range(2, 6)]
    features = [f + torch.tensor([0.0, 100.0])[:, None, None, None] for f in features]
    boxes = [Boxes([square(500), square(20)]), Boxes([square(230)])]
    pooled = ROIPooler(3, SCALES, 0, "ROIAlignV2")(features, boxes)
    assert pooled.shape == (3, 3, 3, 3)
    assert pooled[:, 0, 1, 1].tolist() == [5, 2, 104]


@pytest.mark.parametrize("pooler_type, aligned", [("ROIAlign", False), ("ROIAlignV2", True)])
def test_one_level_is_plain_roi_align(pooler_type, aligned):
    torch.manual_seed(0)
    x, boxes = torch.randn(1, 4, 16, 16), torch.tensor([[3.0, 5, 40, 31]])
    pooled = ROIPooler(4, (1 / 4,), 2, pooler_type)([x], [Boxes(boxes)])
    rois = torch.cat([torch.zeros(1, 1), boxes], dim=1)
    assert torch.equal(pooled, ROIAlign((4, 4), 1 / 4, 2, aligned)(x, rois))


def test_roi_pool_takes_the_maximum():
    x = torch.arange(64.0).reshape(1, 1, 8, 8)
    pooled = ROIPooler(1, (1.0,), 0, "ROIPool")([x], [Boxes([[0.0, 0, 3, 3]])])
    assert pooled.item() == x[0, 0, 3, 3]


def test_no_boxes_and_no_images():
    pooler = ROIPooler(7, SCALES, 2, "ROIAlignV2")
    features = [torch.zeros(2, 3, 64 // 2**i, 64 // 2**i, requires_grad=True) for i in range(4)]
    pooled = pooler(features, [Boxes(torch.zeros(0, 4))] * 2)
    assert pooled.shape == (0, 3, 7, 7)
    assert pooler([torch.zeros(0, 3, 8, 8)] * 4, []).shape == (0, 3, 7, 7)


def test_mistakes_are_reported():
    with pytest.raises(ValueError, match="NoSuchPooler"):
        ROIPooler(7, SCALES, 2, "NoSuchPooler")
    with pytest.raises(AssertionError, match="power of 2"):
        ROIPooler(7, [1 / 3], 2, "ROIAlignV2")
    with pytest.raises(AssertionError, match="pyramid"):
        ROIPooler(7, [1 / 4, 1 / 16], 2, "ROIAlignV2")
    pooler = ROIPooler(7, SCALES, 2, "ROIAlignV2")
    with pytest.raises(AssertionError, match="num_level_assignments=4"):
        pooler([torch.zeros(1, 3, 8, 8)], [Boxes([square(8)])])
    with pytest.raises(AssertionError, match="box_list has length 2"):
        pooler([torch.zeros(1, 3, 8, 8)] * 4, [Boxes([square(8)])] * 2)


def test_traced_pooler_takes_any_number_of_boxes():
    pooler = ROIPooler(2, SCALES[:2], 2, "ROIAlignV2")
    features = [torch.randn(1, 3, 32, 32), torch.randn(1, 3, 16, 16)]

    def pool(p2, p3, boxes):
        return pooler([p2, p3], [Boxes(boxes)])

    boxes = torch.tensor([square(20), square(100), square(math.pi)])
    traced = torch.jit.trace(pool, (*features, boxes[:1]))
    torch.testing.assert_close(traced(*features, boxes), pool(*features, boxes))


def test_pooler_scripts():
    pooler = ROIPooler(7, (0.25, 0.125), 0, "ROIAlignV2")
    levels = [torch.randn(2, 4, 32, 32), torch.randn(2, 4, 16, 16)]
    boxes = [Boxes(torch.tensor([[0.0, 0, 30, 40], [8, 8, 128, 120]])), Boxes(torch.tensor([[5.0, 6, 70, 80]]))]
    assert torch.equal(torch.jit.script(pooler)(levels, boxes), pooler(levels, boxes))
