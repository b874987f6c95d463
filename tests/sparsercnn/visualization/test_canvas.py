"""What is drawn can be told apart: colors by class, strokes by fault, labels beside each other."""

import numpy as np
import torch
from detectron2.structures import Boxes, Instances

from sparsercnn.evaluation.matching import match_objects
from sparsercnn.visualization.canvas import DRAWN_SIZE, _free_place, _overlap, class_color, draw_boxes, enlarge
from sparsercnn.visualization.comparison import draw_comparison

GRAY = np.full((400, 500, 3), 128, dtype=np.uint8)
BOX = np.array([[100.0, 100.0, 300.0, 300.0]])


def share_drawn(picture, box):
    """How much of the left edge of a box is drawn."""
    x0, y0, _, y1 = box.astype(int)
    edge = picture[y0 + 10 : y1 - 10, x0 - 2 : x0 + 3]
    return (np.abs(edge.astype(int) - 128) > 40).any(-1).any(-1).mean()


def test_strokes_differ_in_how_much_of_the_edge_they_draw():
    solid, dashed, dotted = (
        share_drawn(draw_boxes(GRAY, BOX, [""], [class_color(1)], [style]), BOX[0]) for style in ("-", "--", ":")
    )
    assert solid == 1 > dashed > dotted > 0.2


def test_small_pictures_are_enlarged_and_large_ones_are_not():
    small, factor = enlarge(GRAY[:60, :120])
    assert small.shape == (DRAWN_SIZE // 2, DRAWN_SIZE, 3) and factor == 4
    assert enlarge(GRAY)[1] == 1


def test_labels_of_boxes_at_one_place_do_not_cover_each_other():
    size, taken = np.array([80.0, 15.0]), []
    for _ in range(6):
        taken.append(_free_place(BOX[0], size, GRAY.shape[:2], taken))
    assert not any(_overlap(a, b) for i, a in enumerate(taken) for b in taken[:i])


def test_a_label_can_be_read_whatever_the_color_of_its_box():
    for color in ([0.0, 0.0, 0.3], [0.5, 0.0, 0.0], [1.0, 1.0, 1.0]):
        drawn = draw_boxes(GRAY, BOX, ["WWWW"], [np.array(color)])
        label = drawn[82:98, 102:140].astype(int)
        assert label.min() < 60 and label.min(-1).max() > 140


def test_labels_stay_inside_the_picture():
    size = np.array([80.0, 15.0])
    for box in ([0, 0, 5, 5], [495, 395, 500, 400], [-50, -50, 600, 600]):
        x0, y0, x1, y1 = _free_place(np.array(box, dtype=float), size, GRAY.shape[:2], [])
        assert 0 <= x0 < x1 <= 500 and 0 <= y0 < y1 <= 400


def test_a_comparison_draws_right_solid_wrong_dashed_and_missed_dotted():
    right, wrong, missed = (torch.tensor([[x, 100.0, x + 80, 300.0]]) for x in (20.0, 180.0, 340.0))
    found = Instances(
        (400, 500),
        pred_boxes=Boxes(torch.cat([right, wrong])),
        scores=torch.tensor([0.9, 0.8]),
        pred_classes=torch.tensor([1, 1]),
    )
    objects = Instances((400, 500), gt_boxes=Boxes(torch.cat([right, missed])), gt_classes=torch.tensor([1, 1]))
    drawn = draw_comparison(GRAY, found, objects, match_objects(found, objects), ["a", "b"])
    shares = [share_drawn(drawn, box[0].numpy()) for box in (right, wrong, missed)]
    assert shares[0] == 1 > shares[1] > shares[2] > 0.2
