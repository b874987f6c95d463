"""Detection in tiles: as on the whole picture, and each object once."""

import numpy as np
import torch
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.structures import Boxes, Instances
from torch import nn

from sparsercnn.evaluation.tiles import TiledModel, detect_in_tiles, merge_tiles


def found(*rows, size=(100, 100)):
    """Detections (x0, y0, x1, y1, score, class) of a tile."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return Instances(size, pred_boxes=Boxes(table[:, :4]), scores=table[:, 4], pred_classes=table[:, 5].long())


def rows(detections):
    boxes = detections.pred_boxes.tensor.tolist()
    scores = detections.scores.tolist()
    return [(*box, round(score, 3)) for box, score in zip(boxes, scores, strict=True)]


def spots(part):
    """A detector of bright rectangles: finds what is left of them in a part of a picture."""
    boxes = []
    for value in np.unique(part[part > 0]):
        y, x = np.nonzero(part[..., 0] == value)
        boxes.append((x.min(), y.min(), x.max() + 1, y.max() + 1, value / 255, 0))
    return found(*boxes, size=part.shape[:2])


def test_each_object_is_found_once_and_whole():
    """Objects no larger than the overlap, at every place of the picture: across borders and corners of tiles too."""
    picture = np.zeros((230, 310, 3), dtype=np.uint8)
    expected = []
    for i, (y, x) in enumerate((y, x) for y in range(5, 200, 32) for x in range(3, 280, 33)):
        picture[y : y + 19, x : x + 18] = i + 1
        expected.append((x, y, x + 18, y + 19))
    detections = detect_in_tiles(spots, picture, size=100, overlap=0.2)
    boxes = [tuple(map(int, box)) for box in detections.pred_boxes.tensor.tolist()]
    assert sorted(boxes) == sorted(expected)
    assert detections.image_size == (230, 310) and (detections.scores.diff() <= 0).all()


def test_one_tile_is_the_picture():
    picture = np.zeros((50, 60, 3), dtype=np.uint8)
    picture[10:20, 10:20] = 7
    assert rows(detect_in_tiles(spots, picture, 640, 0.2)) == rows(spots(picture))


PLACES = [(0, 0, 100, 100), (80, 0, 180, 100)]


def test_the_better_one_of_two_stays():
    left, right = found((85, 10, 98, 30, 0.6, 0)), found((5, 10, 18, 30, 0.9, 0))
    assert rows(merge_tiles([left, right], PLACES, (100, 180))) == [(85, 10, 98, 30, 0.9)]


def test_a_part_gives_way_to_the_whole_unless_that_is_much_worse():
    part = found((90, 10, 100, 30, 0.8, 0))
    for score, expected in ((0.5, [0.5]), (0.3, [0.8, 0.3])):
        whole = found((5, 10, 50, 30, score, 0))
        assert [row[-1] for row in rows(merge_tiles([part, whole], PLACES, (100, 180)))] == expected


def test_two_parts_of_an_object_do_not_remove_each_other():
    parts = [found((60, 10, 100, 30, 0.8, 0)), found((0, 10, 25, 30, 0.7, 0))]
    assert len(merge_tiles(parts, PLACES, (100, 180))) == 1


def test_a_part_that_a_border_cut_off_goes():
    """IoU 0.25, but the part ends at the border of its tile and lies in the whole."""
    part, whole = found((90, 10, 100, 30, 0.6, 0)), found((10, 10, 50, 30, 0.9, 0))
    assert len(merge_tiles([part, whole], PLACES, (100, 180))) == 1
    elsewhere = found((85, 10, 95, 30, 0.6, 0))  # ends inside of its tile: a small object before a large one
    assert len(merge_tiles([elsewhere, found((5, 10, 60, 30, 0.9, 0))], PLACES, (100, 180))) == 2


def test_what_one_tile_holds_twice_and_other_classes_stay():
    twice = found((10, 10, 30, 30, 0.9, 0), (10, 10, 30, 31, 0.8, 0))
    assert len(merge_tiles([twice, found()], PLACES, (100, 180))) == 2
    assert len(merge_tiles([found((85, 10, 98, 30, 0.6, 0)), found((5, 10, 18, 30, 0.9, 1))], PLACES, (100, 180))) == 2


class Bright(nn.Module):
    """A detector that finds the bright part of its input, in the size that is asked for."""

    def forward(self, inputs):
        outputs = []
        for x in inputs:
            box = spots(x["image"].permute(1, 2, 0).numpy())
            box.pred_boxes.scale(x["width"] / x["image"].shape[2], x["height"] / x["image"].shape[1])
            outputs.append({"instances": box})
        return outputs


def test_tiles_are_resized_and_boxes_taken_back():
    image = torch.zeros(3, 90, 90, dtype=torch.uint8)
    image[:, 60:70, 10:25] = 200
    (output,) = TiledModel(Bright(), 50, 0.2, ResizeShortestEdge([100, 100], 100))([{"image": image}])
    best = output["instances"].pred_boxes.tensor[0]
    assert (best - torch.tensor([10.0, 60, 25, 70])).abs().max() < 1.5
