import torch
from torchvision.ops import batched_nms

from sparsercnn.modeling.distinct import sink_repeats

BOXES = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 10], [50, 50, 60, 60]])


def test_a_second_box_on_an_object_comes_last_with_score_0():
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
    boxes, sunk, classes = sink_repeats(BOXES[None], scores[None], torch.tensor([[1, 1, 0, 1]]), 0.6)
    assert sunk.tolist() == [[*scores[[0, 2, 3]].tolist(), 0.0]]
    assert torch.equal(boxes[0], BOXES[[0, 2, 3, 1]]) and classes.tolist() == [[1, 0, 1, 1]]


def test_each_image_is_by_itself():
    boxes = torch.stack([BOXES, BOXES.flip(0)])
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.6]]).expand(2, -1)
    both = sink_repeats(boxes, scores, torch.zeros(2, 4, dtype=torch.int64), 0.5)
    for i in range(2):
        alone = sink_repeats(boxes[i : i + 1], scores[i : i + 1], torch.zeros(1, 4, dtype=torch.int64), 0.5)
        assert all(torch.equal(together[i], single[0]) for together, single in zip(both, alone, strict=True))


def test_what_is_left_is_among_what_nms_leaves():
    torch.manual_seed(0)
    boxes = torch.rand(200, 4) * 50
    boxes[:, 2:] += boxes[:, :2] + 5
    scores, classes = torch.rand(200).sort(descending=True).values, torch.randint(3, (200,))
    kept, scores_kept, _ = (x[0] for x in sink_repeats(boxes[None], scores[None], classes[None], 0.5))
    left = {tuple(box) for box in kept[scores_kept > 0].tolist()}
    nms = {tuple(box) for box in boxes[batched_nms(boxes, scores, classes, 0.5)].tolist()}
    assert left <= nms and len(left) > len(nms) / 2
