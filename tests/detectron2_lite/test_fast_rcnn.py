"""The box head and the output layers of Fast R-CNN: shapes, losses and inference."""

import math

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads import FastRCNNConvFCHead, FastRCNNOutputLayers, build_box_head
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch.testing import assert_close

TRANSFORM = Box2BoxTransform(weights=(10, 10, 5, 5))
PROPOSALS = torch.tensor([[0.8, 1.1, 3.2, 2.8], [2.3, 2.5, 7, 8]])
TRUTH = torch.tensor([[1.0, 1, 3, 3], [2, 2, 6, 6]])


def proposals(boxes=PROPOSALS, gt_classes=(1, 2), gt_boxes=TRUTH, image_size=(10, 10)) -> Instances:
    classes = torch.tensor(gt_classes, dtype=torch.int64)
    return Instances(image_size, proposal_boxes=Boxes(boxes), gt_boxes=Boxes(gt_boxes), gt_classes=classes)


def layers(num_classes=5, **options) -> FastRCNNOutputLayers:
    torch.manual_seed(132)
    return FastRCNNOutputLayers(ShapeSpec(channels=8), box2box_transform=TRANSFORM, num_classes=num_classes, **options)


def losses_of(predictor, predictions, instances):
    with EventStorage() as storage:
        return predictor.losses(predictions, instances), storage.latest()


# ---------------------------------------------------------------- box head


def test_box_head_by_name():
    cfg = get_cfg()
    cfg.merge_from_list(
        "MODEL.ROI_BOX_HEAD.NAME FastRCNNConvFCHead MODEL.ROI_BOX_HEAD.NUM_CONV 2 MODEL.ROI_BOX_HEAD.CONV_DIM 6"
        " MODEL.ROI_BOX_HEAD.NUM_FC 2 MODEL.ROI_BOX_HEAD.FC_DIM 10 MODEL.ROI_BOX_HEAD.NORM BN".split()
    )
    head = build_box_head(cfg, ShapeSpec(channels=4, height=7, width=7))
    parameters = {name: tuple(p.shape) for name, p in head.named_parameters()}
    assert {name: shape for name, shape in parameters.items() if "norm" not in name} == {
        "conv1.weight": (6, 4, 3, 3),  # no bias beside a norm
        "conv2.weight": (6, 6, 3, 3),
        "fc1.weight": (10, 6 * 49),
        "fc1.bias": (10,),
        "fc2.weight": (10, 10),
        "fc2.bias": (10,),
    }
    assert head(torch.rand(3, 4, 7, 7)).shape == (3, 10) and head.output_shape.channels == 10


def test_box_head_of_convolutions_keeps_the_grid():
    head = FastRCNNConvFCHead(ShapeSpec(channels=4, height=7, width=5), conv_dims=[6], fc_dims=[])
    assert head.output_shape == ShapeSpec(channels=6, height=7, width=5)
    out = head(torch.rand(0, 4, 7, 5))
    assert out.shape == (0, 6, 7, 5)
    with pytest.raises(AssertionError):
        FastRCNNConvFCHead(ShapeSpec(channels=4, height=7, width=5), conv_dims=[], fc_dims=[])


# ---------------------------------------------------------------- losses


def test_losses_of_official_detectron2s_own_test():
    predictor = layers()
    losses, _ = losses_of(predictor, predictor(torch.rand(2, 8)), [proposals()])
    assert losses["loss_cls"].item() == pytest.approx(1.7951188087, rel=1e-5)
    assert losses["loss_box_reg"].item() == pytest.approx(4.0357131958, rel=1e-5)


@pytest.mark.parametrize("agnostic", [False, True])
def test_losses_by_hand(agnostic):
    """Cross-entropy ln 6 of equal scores; L1 of the deltas of the one object, per proposal."""
    predictor = layers(cls_agnostic_bbox_reg=agnostic, loss_weight={"loss_box_reg": 2.0})
    instances = proposals(gt_classes=(1, 5))
    deltas = torch.zeros(2, 4 if agnostic else 20)
    deltas[:, :4] = 7 if not agnostic else 0  # of class 0, which no proposal is
    losses, _ = losses_of(predictor, (torch.zeros(2, 6), deltas), [instances])
    assert losses["loss_cls"].item() == pytest.approx(math.log(6))
    expected = TRANSFORM.get_deltas(PROPOSALS[:1], TRUTH[:1]).abs().sum() / 2
    assert losses["loss_box_reg"].item() == pytest.approx(2 * expected.item())


def test_image_without_objects_has_no_box_loss():
    predictor = layers()
    background = proposals(gt_classes=(5, 5))
    background.remove("gt_boxes")
    deltas = torch.rand(2, 20, requires_grad=True)
    losses, _ = losses_of(predictor, (torch.zeros(2, 6), deltas), [background])
    assert losses["loss_box_reg"] == 0
    losses["loss_box_reg"].backward()
    assert not deltas.grad.any()


def test_empty_batch():
    predictor = layers()
    scores, deltas = torch.rand(0, 6, requires_grad=True), torch.rand(0, 20, requires_grad=True)
    for instances in ([], [proposals(PROPOSALS[:0], (), TRUTH[:0])]):
        losses, _ = losses_of(predictor, (scores, deltas), instances)
        assert losses["loss_cls"] == 0 and losses["loss_box_reg"] == 0
        sum(losses.values()).backward()
    assert scores.grad is not None and deltas.grad is not None
    assert predictor.inference((scores, deltas), []) == ([], [])


def test_statistics_of_the_classification():
    scores = torch.eye(6)[[1, 5, 2, 5]]
    boxes = PROPOSALS[[0, 0, 1, 1]]
    instances = proposals(boxes, (1, 2, 3, 5), TRUTH[[0, 0, 1, 1]])
    _, scalars = losses_of(layers(), (scores, torch.zeros(4, 20)), [instances])
    assert scalars["fast_rcnn/cls_accuracy"][0] == 0.5
    assert scalars["fast_rcnn/fg_cls_accuracy"][0] == pytest.approx(1 / 3)
    assert scalars["fast_rcnn/false_negative"][0] == pytest.approx(1 / 3)


def test_gradients_to_proposals_are_refused():
    with pytest.raises(AssertionError, match="should not require gradients"):
        losses_of(layers(), (torch.zeros(2, 6), torch.zeros(2, 20)), [proposals(PROPOSALS.clone().requires_grad_())])


def test_sigmoid_loss_by_hand():
    """Every class counts by itself, background is none of them."""
    predictor = layers(use_sigmoid_ce=True)
    assert_close(predictor.cls_score.bias.sigmoid(), torch.full((6,), 0.01))
    scores = torch.zeros(2, 6)
    scores[:, 5] = 9.0
    scores[0, 1] = math.log(3)  # probability 3/4
    loss = predictor.sigmoid_cross_entropy_loss(scores, torch.tensor([1, 5]))
    assert loss.item() == pytest.approx((9 * math.log(2) - math.log(0.75)) / 2)
    (probs,) = predictor.predict_probs((scores, None), [proposals()])
    assert_close(probs[0, :2], torch.tensor([0.5, 0.75]))
    assert predictor.sigmoid_cross_entropy_loss(scores[:0], torch.empty(0, dtype=torch.int64)) == 0


def test_federated_loss_counts_the_classes_present_and_drawn():
    weights = torch.tensor([0.0, 1, 0, 1, 0])  # only 1 and 3 can be drawn
    predictor = layers(
        use_sigmoid_ce=True, use_fed_loss=True, get_fed_loss_cls_weights=lambda: weights, fed_loss_num_classes=3
    )
    classes = predictor.get_fed_loss_classes(torch.tensor([2, 2]), 3, 5, weights)
    assert sorted(classes.tolist()) == [1, 2, 3]
    assert predictor.get_fed_loss_classes(torch.tensor([0, 2, 4, 5]), 3, 5, weights).tolist() == [0, 2, 4, 5]
    loss = predictor.sigmoid_cross_entropy_loss(torch.zeros(2, 6), torch.tensor([2, 2]))
    assert loss.item() == pytest.approx(3 * math.log(2))
    with pytest.raises(AssertionError, match="sigmoid"):
        layers(use_fed_loss=True, get_fed_loss_cls_weights=lambda: weights)
    with pytest.raises(AssertionError, match="match num_classes"):
        layers(4, use_fed_loss=True, use_sigmoid_ce=True, get_fed_loss_cls_weights=lambda: weights)


def test_weights_of_federated_loss_come_from_the_metadata():
    name = "fed_loss_test"
    MetadataCatalog.get(name).class_image_count = [{"id": 2, "image_count": 16}, {"id": 1, "image_count": 4}]
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = (name,)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 2
    cfg.MODEL.ROI_BOX_HEAD.USE_FED_LOSS = cfg.MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE = True
    try:
        assert FastRCNNOutputLayers(cfg, 8).fed_loss_cls_weights.tolist() == [2, 4]
    finally:
        MetadataCatalog.remove(name)


# ---------------------------------------------------------------- inference


def infer(boxes, scores, score_thresh=0.1, nms_thresh=0.5, topk=10, image_size=(100, 100)):
    detections, kept = fast_rcnn_inference([boxes], [scores], [image_size], score_thresh, nms_thresh, topk)
    return detections[0], kept[0]


def test_each_class_has_its_box_and_its_suppression():
    boxes = torch.tensor([[0.0, 0, 10, 10, 50, 50, 60, 60], [0, 0, 10, 11, 50, 50, 60, 61]])
    scores = torch.tensor([[0.6, 0.2, 0.2], [0.5, 0.4, 0.1]])
    detections, kept = infer(boxes, scores)
    assert detections.pred_classes.tolist() == [0, 1] and kept.tolist() == [0, 1]
    assert detections.pred_boxes.tensor.tolist() == [[0, 0, 10, 10], [50, 50, 60, 61]]
    assert_close(detections.scores, torch.tensor([0.6, 0.4]))
    _, kept = infer(boxes, scores, nms_thresh=0.95)
    assert kept.tolist() == [0, 1, 1, 0]
    assert len(infer(boxes, scores, nms_thresh=0.95, topk=3)[0]) == 3
    assert len(infer(boxes, scores, nms_thresh=0.95, topk=-1)[0]) == 4
    assert len(infer(boxes, scores, score_thresh=0.6)[0]) == 0


def test_shared_boxes_are_clipped_to_the_image():
    detections, _ = infer(torch.tensor([[-10.0, -10, 200, 20]]), torch.tensor([[0.5, 0.4, 0.1]]))
    assert detections.pred_boxes.tensor.tolist() == [[0, 0, 100, 20]] * 2
    assert detections.pred_classes.tolist() == [0, 1]


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_what_is_not_finite_is_dropped(value):
    boxes, scores = torch.tensor([[0.0, 0, 10, 10]] * 3), torch.full((3, 2), 0.5)
    boxes[0, 2] = value
    scores[1, 0] = value
    assert len(infer(boxes, scores)[0]) == 1
    assert len(infer(torch.full_like(boxes, value), scores)[0]) == 0


def test_boxes_predicted_for_the_classes_of_the_ground_truth():
    predictor = layers()
    deltas = torch.zeros(2, 20)
    deltas[0, 4:8] = torch.tensor([10.0, 0, 0, 0])  # class 1: one width to the right
    (boxes,) = predictor.predict_boxes_for_gt_classes((None, deltas), [proposals(gt_classes=(1, 5))])
    width = PROPOSALS[0, 2] - PROPOSALS[0, 0]
    assert_close(boxes, PROPOSALS + torch.tensor([[width, 0, width, 0], [0, 0, 0, 0]]))


def test_traced_predictions_take_any_number_of_proposals(monkeypatch):
    # As official detectron2's export does while tracing; the subset keeps numbers symbolic by itself.
    monkeypatch.setattr("detectron2.modeling.roi_heads.fast_rcnn.len", lambda x: x.__len__(), raising=False)
    predictor = layers()

    def predict(scores, deltas, boxes):
        instances = [Instances((10, 10), proposal_boxes=Boxes(boxes))]
        (boxes,) = predictor.predict_boxes((None, deltas), instances)
        (probs,) = predictor.predict_probs((scores, None), instances)
        return boxes, probs

    def example(num):
        return torch.randn(num, 6), torch.randn(num, 20), torch.rand(num, 4)

    traced = torch.jit.trace(predict, example(10))
    for num in (5, 20):
        inputs = example(num)
        assert_close(traced(*inputs), predict(*inputs))


def test_features_may_have_a_grid():
    predictor = FastRCNNOutputLayers(
        ShapeSpec(channels=2, height=2, width=3), box2box_transform=TRANSFORM, num_classes=5
    )
    scores, deltas = predictor(torch.rand(4, 2, 2, 3))
    assert scores.shape == (4, 6) and deltas.shape == (4, 20)
