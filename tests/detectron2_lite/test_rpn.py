"""Region proposal network: losses, sampling, and the choice of proposals."""

import math

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone, build_proposal_generator
from detectron2.modeling.proposal_generator import RPN, StandardRPNHead
from detectron2.modeling.proposal_generator.proposal_utils import (
    add_ground_truth_to_proposals,
    find_top_rpn_proposals,
)
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from torch.testing import assert_close

SHAPE = {"res4": ShapeSpec(channels=8, stride=16)}


def small_rpn(**options) -> RPN:
    cfg = get_cfg()
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16, 32]]
    for key, value in options.items():
        cfg.MODEL.RPN[key] = value
    torch.manual_seed(0)
    return RPN(cfg, SHAPE)


def truth(boxes, image_size=(64, 96)) -> Instances:
    return Instances(image_size, gt_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32)))


def batch(num_images=2):
    features = {"res4": torch.rand(num_images, 8, 4, 6, generator=torch.Generator().manual_seed(1))}
    return ImageList(torch.zeros(num_images, 3, 64, 96), [(64, 96)] * num_images), features


# ---------------------------------------------------------------- numbers of official detectron2's own tests


def losses_and_proposals(conv_dims):
    torch.manual_seed(121)
    cfg = get_cfg()
    cfg.MODEL.RPN.CONV_DIMS = conv_dims
    rpn = RPN(cfg, build_backbone(cfg).output_shape())
    images = ImageList(torch.rand(2, 20, 30), [(10, 10), (20, 30)])
    features = {"res4": torch.rand(2, 1024, 1, 2)}
    gt_instances = [truth([[1, 1, 3, 3]], (15, 15)), truth([[2, 2, 6, 6]], (15, 15))]
    with EventStorage():
        proposals, losses = rpn(images, features, gt_instances)
    return rpn, losses, proposals


def test_losses_and_proposals():
    _, losses, proposals = losses_and_proposals([-1])
    assert losses["loss_rpn_cls"].item() == pytest.approx(0.08011703193, rel=1e-5)
    assert losses["loss_rpn_loc"].item() == pytest.approx(0.101470276, rel=1e-5)
    assert [p.image_size for p in proposals] == [(10, 10), (20, 30)]
    boxes = torch.tensor([[0.0, 0, 10, 10], [7.2702, 0, 10, 10]])
    assert_close(proposals[0].proposal_boxes.tensor, boxes, atol=1e-4, rtol=0)
    assert_close(proposals[0].objectness_logits, torch.tensor([0.1596, -0.0007]), atol=1e-4, rtol=0)


def test_losses_with_five_convolutions():
    rpn, losses, _ = losses_and_proposals([64] * 5)
    assert losses["loss_rpn_cls"].item() == pytest.approx(0.08122821152, rel=1e-5)
    assert losses["loss_rpn_loc"].item() == pytest.approx(0.10064548254, rel=1e-5)
    assert [conv.out_channels for conv in rpn.rpn_head.conv] == [64] * 5


# ---------------------------------------------------------------- head


def test_names_and_widths_of_convolutions():
    one = StandardRPNHead(in_channels=8, num_anchors=3)
    assert one.conv.weight.shape == (8, 8, 3, 3)
    several = StandardRPNHead(in_channels=8, num_anchors=3, box_dim=5, conv_dims=[-1, 4, -1])
    assert [conv.out_channels for conv in several.conv] == [8, 4, 4]
    assert "conv.conv2.weight" in several.state_dict()
    logits, deltas = several([torch.rand(2, 8, 5, 6)])
    assert logits[0].shape == (2, 3, 5, 6) and deltas[0].shape == (2, 15, 5, 6)


def test_head_is_the_same_on_all_levels_or_refused():
    cfg = get_cfg()
    levels = [ShapeSpec(channels=8, stride=4), ShapeSpec(channels=16, stride=8)]
    with pytest.raises(AssertionError, match="same channel"):
        StandardRPNHead(cfg, levels)
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64, 128]]
    with pytest.raises(AssertionError, match="same number of anchors"):
        StandardRPNHead(cfg, [levels[0], levels[0]])
    with pytest.raises(ValueError, match="greater than 0"):
        StandardRPNHead(in_channels=8, num_anchors=3, conv_dims=[8, 0])


# ---------------------------------------------------------------- labels and losses


def test_sample_has_its_size_and_share_of_positives():
    rpn = small_rpn(BATCH_SIZE_PER_IMAGE=20, POSITIVE_FRACTION=0.25)
    images, features = batch(1)
    anchors = rpn.anchor_generator([features["res4"]])
    (labels,), (boxes,) = rpn.label_and_sample_anchors(anchors, [truth([[4, 4, 30, 36], [40, 8, 72, 40]])])
    assert labels.shape == (len(anchors[0]),) and boxes.shape == (len(anchors[0]), 4)
    assert (labels == 1).sum() <= 5 and (labels >= 0).sum() == 20
    assert (labels == 1).sum() >= 2  # at least the best anchor of each object


def test_every_object_has_an_anchor_and_the_boxes_are_those_it_matches():
    rpn = small_rpn(BATCH_SIZE_PER_IMAGE=10000, POSITIVE_FRACTION=1.0)
    anchors = rpn.anchor_generator([batch(1)[1]["res4"]])
    tiny = [10.0, 10, 12, 12]  # no anchor overlaps it by much
    (labels,), (boxes,) = rpn.label_and_sample_anchors(anchors, [truth([tiny])])
    assert (labels == 1).any()
    assert torch.equal(boxes[labels == 1].unique(dim=0), torch.tensor([tiny]))


def test_image_without_objects_is_background():
    rpn = small_rpn(BATCH_SIZE_PER_IMAGE=16)
    images, features = batch(1)
    empty = truth([])
    (labels,), (boxes,) = rpn.label_and_sample_anchors(rpn.anchor_generator([features["res4"]]), [empty])
    assert (labels == 0).sum() == 16 and not (labels == 1).any() and not boxes.any()
    with EventStorage() as storage:
        _, losses = rpn(images, features, [empty])
    assert losses["loss_rpn_loc"] == 0 and losses["loss_rpn_cls"] > 0
    assert storage.latest()["rpn/num_pos_anchors"][0] == 0 and storage.latest()["rpn/num_neg_anchors"][0] == 16


def test_anchors_beyond_the_boundary_do_not_count():
    rpn = small_rpn(BATCH_SIZE_PER_IMAGE=10000, BOUNDARY_THRESH=0)
    anchors = rpn.anchor_generator([batch(1)[1]["res4"]])
    (labels,), _ = rpn.label_and_sample_anchors(anchors, [truth([[4, 4, 30, 36]])])
    inside = anchors[0].inside_box((64, 96))
    assert (labels[~inside] == -1).all() and (labels[inside] == 0).any() and not inside.all()


def test_losses_by_hand_and_their_weights():
    """Two anchors count, one for an object: ln 2 of cross-entropy each at logit 0, and the L1 distance of deltas."""
    rpn = small_rpn(BATCH_SIZE_PER_IMAGE=4, LOSS_WEIGHT=2.0, BBOX_REG_LOSS_WEIGHT=3.0)
    anchors = [Boxes(torch.tensor([[0.0, 0, 10, 10], [10, 0, 20, 10], [0, 0, 20, 20]]))]
    target = torch.tensor([[1.0, 0, 11, 20]]).repeat(3, 1)  # dx 0.1, dy 0.5, dh ln 2 from the first anchor
    labels = torch.tensor([1, 0, -1], dtype=torch.int8)
    with EventStorage():
        losses = rpn.losses(anchors, [torch.zeros(1, 3)], [labels], [torch.zeros(1, 3, 4)], [target])
    assert losses["loss_rpn_cls"].item() == pytest.approx(2 * 2 * math.log(2) / 4)
    assert losses["loss_rpn_loc"].item() == pytest.approx(3 * 2 * (0.1 + 0.5 + math.log(2)) / 4)


def test_ground_truth_is_needed_in_training_only():
    rpn = small_rpn()
    images, features = batch()
    with pytest.raises(AssertionError, match="requires gt_instances"):
        rpn(images, features)
    proposals, losses = rpn.eval()(images, features)
    assert losses == {} and len(proposals) == 2
    assert all(not p.proposal_boxes.tensor.requires_grad for p in proposals)


def test_generator_by_name():
    cfg = get_cfg()
    assert isinstance(build_proposal_generator(cfg, SHAPE), RPN)
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "PrecomputedProposals"
    assert build_proposal_generator(cfg, SHAPE) is None


# ---------------------------------------------------------------- choice of proposals

GRID = torch.tensor([[10.0 * i, 0, 10.0 * i + 8, 8] for i in range(6)])


def top(boxes, scores, image_size=(50, 100), **options):
    """`find_top_rpn_proposals` of one image; boxes and scores of each level."""
    arguments = {"nms_thresh": 0.5, "pre_nms_topk": 100, "post_nms_topk": 100, "min_box_size": 0.0, "training": False}
    arguments |= options
    (found,) = find_top_rpn_proposals([b[None] for b in boxes], [s[None] for s in scores], [image_size], **arguments)
    return found


def test_best_of_each_level_then_best_of_all():
    scores = torch.arange(6.0)
    found = top([GRID, GRID + 0.5], [scores, scores / 2], pre_nms_topk=3, post_nms_topk=4)
    assert found.objectness_logits.tolist() == [5, 4, 3, 2.5]
    assert torch.equal(found.proposal_boxes.tensor[:3], GRID[[5, 4, 3]])


def test_suppression_stays_within_a_level():
    scores = torch.tensor([2.0, 1.0])
    same = GRID[[0, 0]]
    assert top([same], [scores]).objectness_logits.tolist() == [2]
    assert top([same[:1], same[1:]], [scores[:1], scores[1:]]).objectness_logits.tolist() == [2, 1]


def test_boxes_are_clipped_and_small_ones_dropped():
    boxes = torch.tensor([[-5.0, -5, 4, 4], [99, 0, 200, 9], [150, 10, 180, 20], [20, 20, 20, 30]])
    found = top([boxes], [torch.tensor([4.0, 3, 2, 1])])
    assert found.proposal_boxes.tensor.tolist() == [[0, 0, 4, 4], [99, 0, 100, 9]]
    assert top([boxes], [torch.zeros(4)], min_box_size=1.0).proposal_boxes.tensor.tolist() == [[0, 0, 4, 4]]


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_what_is_not_finite_is_dropped_or_in_training_an_error(value):
    scores = torch.arange(6.0)
    scores[2] = value
    boxes = GRID.clone()
    boxes[4, 0] = value
    assert top([boxes], [scores]).objectness_logits.tolist() == [5, 3, 1, 0]
    with pytest.raises(FloatingPointError, match="Training has diverged"):
        top([boxes], [scores], training=True)


def test_traced_choice_generalizes_to_other_sizes():
    def choose(boxes, scores, image_size):
        found = find_top_rpn_proposals([boxes], [scores], [image_size], 0.7, 100, 100, 0, False)[0]
        return found.proposal_boxes.tensor, found.objectness_logits

    def example(num_boxes, side):
        return torch.rand(2, num_boxes, 4), torch.rand(2, num_boxes), torch.tensor([side, side])

    torch.manual_seed(0)
    traced = torch.jit.trace(choose, example(300, 100), check_trace=False)
    for inputs in (example(500, 60), example(30, 800)):
        assert_close(traced(*inputs), choose(*inputs))


def test_ground_truth_follows_the_proposals():
    proposals = Instances((50, 100), proposal_boxes=Boxes(GRID[:2]), objectness_logits=torch.zeros(2))
    gt = Instances((50, 100), gt_boxes=Boxes(GRID[3:5]), gt_classes=torch.tensor([1, 2]))
    for source in (gt, gt.gt_boxes):
        (both,) = add_ground_truth_to_proposals([source], [proposals])
        assert list(both.get_fields()) == ["proposal_boxes", "objectness_logits"]
        assert torch.equal(both.proposal_boxes.tensor, GRID[[0, 1, 3, 4]])
        assert both.objectness_logits[2:].sigmoid().tolist() == [1, 1] and both.objectness_logits.isfinite().all()
    assert len(proposals) == 2
    assert add_ground_truth_to_proposals([], []) == []


def test_fields_of_proposals_must_exist_in_the_ground_truth():
    proposals = Instances((9, 9), proposal_boxes=Boxes(GRID), objectness_logits=torch.zeros(6), age=torch.zeros(6))
    with pytest.raises(AssertionError, match="'age'"):
        add_ground_truth_to_proposals([Boxes(GRID)], [proposals])
