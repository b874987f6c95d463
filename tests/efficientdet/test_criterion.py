"""Matching of anchors to objects, and the two losses."""

import pytest
import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances

from efficientdet import EfficientDetAnchors, EfficientDetCriterion
from efficientdet.criterion import match_anchors

CRITERION = EfficientDetCriterion(Box2BoxTransform((1.0, 1.0, 1.0, 1.0)))
STRIDES = [8, 16, 32, 64, 128]


def test_anchors_take_the_object_they_overlap_most():
    iou = torch.tensor([[0.9, 0.5, 0.49, 0.0], [0.2, 0.6, 0.3, 0.0]])
    assert match_anchors(iou).tolist() == [0, 1, -1, -1]
    assert match_anchors(iou, threshold=0.4).tolist() == [0, 1, 0, -1]


def test_every_object_gets_its_best_anchor():
    low = torch.tensor([[0.1, 0.3, 0.2], [0.4, 0.0, 0.0]])
    assert match_anchors(low).tolist() == [1, 0, -1]
    # Even one that overlaps another object more; the first of two objects that want the same anchor has it.
    assert match_anchors(torch.tensor([[0.6, 0.1], [0.9, 0.2], [0.1, 0.0]])).tolist() == [0, -1]


def test_without_objects_all_is_background():
    assert match_anchors(torch.zeros(0, 3)).tolist() == [-1, -1, -1]


def scene(classes: int = 4, size: int = 128, batch: int = 2) -> tuple:
    """Random predictions for all anchors of images of 128 pixels, and three objects in each but the last image."""
    torch.manual_seed(0)
    anchors = EfficientDetAnchors(STRIDES)([torch.zeros(1, 1, size // s, size // s) for s in STRIDES])
    logits = [torch.randn(batch, len(a), classes) - 2 for a in anchors]
    deltas = [torch.randn(batch, len(a), 4) * 0.3 for a in anchors]
    targets = []
    for i in range(batch):
        count = 3 if i < batch - 1 else 0
        corners = torch.rand(count, 2) * 60
        boxes = torch.cat([corners, corners + 10 + torch.rand(count, 2) * 50], dim=1)
        classes_of = torch.randint(classes, (count,))
        targets.append(Instances((size, size), gt_boxes=Boxes(boxes), gt_classes=classes_of))
    return anchors, logits, deltas, targets


def focal(logit: float, is_object: bool) -> float:
    p = torch.tensor(logit).sigmoid().item()
    p, alpha = (p, 0.25) if is_object else (1 - p, 0.75)
    return -alpha * (1 - p) ** 1.5 * torch.tensor(p).log().item()


def test_formula_with_one_anchor_matched():
    anchors = [Boxes(torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]]))]
    target = Instances((64, 64), gt_boxes=Boxes(torch.tensor([[1.0, 0, 11, 20]])), gt_classes=torch.tensor([1]))
    logits = [torch.tensor([[[0.3, -0.2], [-1.0, 2.0]]])]
    deltas = [torch.tensor([[[0.15, 0.0, 7.0, 0.7], [1.0, 1.0, 1.0, 1.0]]])]
    losses = CRITERION(anchors, logits, deltas, [target])
    # One matched anchor and one more.
    expected = (focal(0.3, False) + focal(-0.2, True) + focal(-1.0, False) + focal(2.0, False)) / 2
    assert losses["loss_cls"].item() == pytest.approx(expected, rel=1e-5)
    # Wanted are (0.1, 0.5, 0, log 2); the third is exactly zero and does not count.
    huber = 0.05**2 / 2 + 0.1 * (0.5 - 0.05) + (torch.tensor(2.0).log().item() - 0.7) ** 2 / 2
    assert losses["loss_box_reg"].item() == pytest.approx(50 * huber / (4 * 2), rel=1e-5)


def test_a_batch_without_objects_has_a_class_loss_alone():
    anchors, logits, deltas, targets = scene()
    logits = [x.requires_grad_() for x in logits]
    deltas = [x.requires_grad_() for x in deltas]
    losses = CRITERION(anchors, logits, deltas, [targets[-1]] * 2)
    assert losses["loss_box_reg"] == 0 and losses["loss_cls"] > 0
    sum(losses.values()).backward()
    assert all((x.grad == 0).all() for x in deltas)


def test_equals_effdet():
    reason = "the effdet package, which the losses are compared with, is not installed"
    theirs = pytest.importorskip("effdet.anchors", reason=reason)
    loss = pytest.importorskip("effdet.loss", reason=reason)
    config = pytest.importorskip("effdet.config", reason=reason).get_efficientdet_config("tf_efficientdet_d0")
    config.update({"image_size": (128, 128), "num_classes": 4})
    anchors, logits, deltas, (target, _) = scene()
    labeler = theirs.AnchorLabeler(theirs.Anchors.from_config(config), 4)
    yxyx = target.gt_boxes.tensor[:, [1, 0, 3, 2]]
    cls_targets, box_targets, positives = labeler.label_anchors(yxyx, target.gt_classes + 1.0)

    def maps(xs: list[torch.Tensor], order: list[int] | slice) -> list[torch.Tensor]:
        """Those of the first image, in effdet's layout."""
        sides = [128 // s for s in STRIDES]
        return [x[:1, :, order].reshape(1, n, n, -1).permute(0, 3, 1, 2) for x, n in zip(xs, sides, strict=True)]

    _, class_loss, box_loss = loss.DetectionLoss(config)(
        maps(logits, slice(None)),
        maps(deltas, [1, 0, 3, 2]),
        [x[None] for x in cls_targets],
        [x[None] for x in box_targets],
        positives[None],
    )
    ours = CRITERION(anchors, [x[:1] for x in logits], [x[:1] for x in deltas], [target])
    torch.testing.assert_close(ours["loss_cls"], class_loss)
    torch.testing.assert_close(ours["loss_box_reg"], 50 * box_loss)
