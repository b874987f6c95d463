"""RoI heads: which proposals they train on, and what they return."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_proposal_generator, build_roi_heads
from detectron2.modeling.roi_heads import FastRCNNConvFCHead, Res5ROIHeads, StandardROIHeads
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage

SHAPE = {"res4": ShapeSpec(channels=8, stride=16)}
SIZE = (64, 96)
OBJECTS = [[4.0, 4, 30, 36], [40, 8, 72, 40]]


def small_heads(**options) -> StandardROIHeads:
    cfg = get_cfg()
    cfg.merge_from_list(
        "MODEL.ROI_HEADS.NAME StandardROIHeads MODEL.ROI_HEADS.NUM_CLASSES 3 MODEL.ROI_BOX_HEAD.NAME FastRCNNConvFCHead"
        " MODEL.ROI_BOX_HEAD.NUM_FC 1 MODEL.ROI_BOX_HEAD.FC_DIM 12 MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION 3".split()
    )
    cfg.MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES = options.pop("TRAIN_ON_PRED_BOXES", False)
    for key, value in options.items():
        cfg.MODEL.ROI_HEADS[key] = value
    torch.manual_seed(0)
    heads = build_roi_heads(cfg, SHAPE)
    assert isinstance(heads, StandardROIHeads)
    return heads


def truth(boxes=OBJECTS, classes=(2, 1)) -> Instances:
    classes = torch.tensor(classes, dtype=torch.int64)
    return Instances(SIZE, gt_boxes=Boxes(torch.tensor(boxes)), gt_classes=classes, gt_age=classes * 10)


def proposed(boxes) -> Instances:
    boxes = Boxes(torch.tensor(boxes))
    return Instances(SIZE, proposal_boxes=boxes, objectness_logits=torch.zeros(len(boxes)))


def grid_of_proposals() -> Instances:
    return proposed([[8.0 * x, 8.0 * y, 8.0 * x + 30, 8.0 * y + 30] for x in range(8) for y in range(4)])


def sample(heads, proposals, targets):
    with EventStorage() as storage:
        return heads.label_and_sample_proposals(proposals, targets), storage.latest()


def batch(num_images=1):
    features = {"res4": torch.rand(num_images, 8, 4, 6, generator=torch.Generator().manual_seed(1))}
    return ImageList(torch.zeros(num_images, 3, *SIZE), [SIZE] * num_images), features


# ---------------------------------------------------------------- sampling


def test_labels_and_ground_truth_of_the_sample():
    near, far = [5.0, 5, 30, 36], [70.0, 45, 90, 60]
    (sampled,), scalars = sample(small_heads(PROPOSAL_APPEND_GT=False), [proposed([far, near])], [truth()])
    assert sampled.gt_classes.tolist() == [2, 3]  # objects come first; 3 is background
    assert sampled.proposal_boxes.tensor.tolist() == [near, far]
    assert sampled.gt_boxes.tensor[0].tolist() == OBJECTS[0] and sampled.gt_age[0] == 20
    assert scalars["roi_head/num_fg_samples"][0] == 1 and scalars["roi_head/num_bg_samples"][0] == 1


def test_sample_has_its_size_and_share_of_objects():
    heads = small_heads(BATCH_SIZE_PER_IMAGE=16, POSITIVE_FRACTION=0.125)
    (sampled,), _ = sample(heads, [grid_of_proposals()], [truth()])
    assert len(sampled) == 16 and (sampled.gt_classes < 3).sum() == 2


def test_proposals_between_the_thresholds_are_left_out():
    heads = small_heads(IOU_THRESHOLDS=[0.2, 0.9], IOU_LABELS=[0, -1, 1], PROPOSAL_APPEND_GT=False)
    half = [4.0, 4, 30, 20]  # IoU 0.5 with the first object
    (sampled,), _ = sample(heads, [proposed([half, [70.0, 45, 90, 60]])], [truth()])
    assert sampled.gt_classes.tolist() == [3]


@pytest.mark.parametrize("append", [True, False])
def test_ground_truth_is_among_the_proposals_if_wished(append):
    heads = small_heads(PROPOSAL_APPEND_GT=append)
    (sampled,), _ = sample(heads, [proposed([[70.0, 45, 90, 60]])], [truth()])
    assert (sampled.gt_classes < 3).sum() == (2 if append else 0)


def test_images_without_objects_or_proposals():
    none = truth(torch.zeros(0, 4).tolist(), ())
    (sampled, empty), scalars = sample(
        small_heads(PROPOSAL_APPEND_GT=False), [grid_of_proposals(), proposed([])], [none, none]
    )
    assert (sampled.gt_classes == 3).all() and len(sampled) == 32 and not sampled.has("gt_boxes")
    assert len(empty) == 0
    assert scalars["roi_head/num_bg_samples"][0] == 16  # per image


# ---------------------------------------------------------------- whole heads


def test_losses_in_training_detections_otherwise():
    heads = small_heads(SCORE_THRESH_TEST=0.0)
    images, features = batch(2)
    proposals = [grid_of_proposals(), grid_of_proposals()]
    with EventStorage():
        sampled, losses = heads(images, features, proposals, [truth(), truth([[1.0, 1, 9, 9]], (0,))])
    assert set(losses) == {"loss_cls", "loss_box_reg"} and len(sampled) == 2
    detections, losses = heads.eval()(images, features, proposals)
    assert losses == {} and all(len(d) > 0 and d.image_size == SIZE for d in detections)
    assert set(detections[0].get_fields()) == {"pred_boxes", "scores", "pred_classes"}


def test_targets_are_needed_in_training():
    images, features = batch()
    with pytest.raises(AssertionError, match="'targets' argument is required"):
        small_heads()(images, features, [grid_of_proposals()])


def test_no_proposals_no_detections():
    images, features = batch()
    (detections,), _ = small_heads().eval()(images, features, [proposed([])])
    assert len(detections) == 0


def test_boxes_that_are_given_stay():
    given = Instances(SIZE, pred_boxes=Boxes(torch.tensor(OBJECTS)), pred_classes=torch.tensor([0, 1]))
    assert small_heads().eval().forward_with_given_boxes(batch()[1], [given]) == [given]


def test_further_heads_may_train_on_predicted_boxes():
    images, features = batch()
    for train_on_pred_boxes in (False, True):
        heads = small_heads(TRAIN_ON_PRED_BOXES=train_on_pred_boxes)
        with torch.no_grad():
            heads.box_predictor.bbox_pred.bias.fill_(1.0)
        with EventStorage():
            (sampled,), _ = heads(images, features, [grid_of_proposals()], [truth()])
        known = grid_of_proposals().proposal_boxes.tensor.tolist() + OBJECTS
        assert all((box in known) != train_on_pred_boxes for box in sampled.proposal_boxes.tensor.tolist())


def test_losses_of_official_detectron2s_own_test():
    torch.manual_seed(121)
    cfg = get_cfg()
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 2
    images = ImageList(torch.rand(2, 20, 30), [(10, 10), (20, 30)])
    features = {"res4": torch.rand(2, 1024, 1, 2)}
    shape = {"res4": ShapeSpec(channels=1024, stride=16)}
    targets = []
    for boxes, classes in (([[1.0, 1, 3, 3], [2, 2, 6, 6]], [2, 1]), ([[1.0, 5, 2, 8], [7, 3, 10, 5]], [1, 2])):
        targets.append(Instances((15, 15), gt_boxes=Boxes(torch.tensor(boxes)), gt_classes=torch.tensor(classes)))
        torch.rand(2, 15, 15)  # that test draws masks here
    rpn, heads = build_proposal_generator(cfg, shape), StandardROIHeads(cfg, shape)
    with EventStorage():
        proposals, losses = rpn(images, features, targets)
        _, head_losses = heads(images, features, proposals, targets)
    expected = {
        "loss_cls": 4.5253729820251465,
        "loss_box_reg": 0.009785720147192478,
        "loss_rpn_cls": 0.08186662942171097,
        "loss_rpn_loc": 0.1104838103055954,
    }
    assert {name: loss.item() for name, loss in {**head_losses, **losses}.items()} == pytest.approx(expected, rel=1e-4)


def test_res5_heads_halve_the_pooled_grid():
    cfg = get_cfg()
    cfg.merge_from_list(
        "MODEL.RESNETS.RES2_OUT_CHANNELS 8 MODEL.RESNETS.WIDTH_PER_GROUP 2 MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION 6"
        " MODEL.ROI_HEADS.NUM_CLASSES 3 MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.0".split()
    )
    shape = {"res4": ShapeSpec(channels=32, stride=16)}
    heads = build_roi_heads(cfg, shape)
    assert isinstance(heads, Res5ROIHeads)
    assert heads.res5(torch.rand(2, 32, 6, 6)).shape == (2, 64, 3, 3)
    assert heads.box_predictor.cls_score.weight.shape == (4, 64)
    images, _ = batch()
    features = {"res4": torch.rand(1, 32, 4, 6)}
    with EventStorage():
        detections, losses = heads(images, features, [grid_of_proposals()], [truth()])
    assert detections == [] and set(losses) == {"loss_cls", "loss_box_reg"}
    (detections,), losses = heads.eval()(images, features, [grid_of_proposals()])
    assert losses == {} and len(detections) > 0

    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["res4", "res5"]
    with pytest.raises(AssertionError):
        Res5ROIHeads(cfg, shape)


def test_box_head_scripts():
    head = FastRCNNConvFCHead(ShapeSpec(channels=8, height=14, width=14), conv_dims=[8, 8], fc_dims=[16, 16]).eval()
    x = torch.randn(4, 8, 14, 14)
    assert torch.equal(torch.jit.script(head)(x), head(x))
