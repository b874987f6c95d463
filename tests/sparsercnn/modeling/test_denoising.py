"""Noised copies of objects beside the proposals."""

import torch
from detectron2.modeling import build_model
from torch.testing import assert_close

from sparsercnn.modeling.boxes import paired_iou
from sparsercnn.modeling.denoising import Denoising

from ..models import small_config, training_batch

BATCH = training_batch()
TARGETS = [BATCH[0]["instances"], BATCH[1]["instances"][:1]]  # 2 and 1 objects


def noised(**options):
    torch.manual_seed(0)
    return Denoising(num_classes=3, hidden_dim=8, queries=6, **options)(TARGETS)


def test_places_hold_as_many_groups_of_copies_as_fit():
    copies = noised(box_noise=0.0, label_noise=0.0)
    assert copies.groups == 3 and copies.boxes.shape == (2, 6, 4) and copies.features.shape == (2, 6, 8)
    assert copies.present.tolist() == [[True] * 6, [True, False] * 3]
    assert_close(copies.boxes[0], TARGETS[0].gt_boxes.tensor.repeat(3, 1))
    assert_close(copies.boxes[1, 0], TARGETS[1].gt_boxes.tensor[0])


def test_noise_is_bounded_and_differs_between_copies():
    copies = noised(box_noise=0.4)
    truth = TARGETS[0].gt_boxes.tensor.repeat(3, 1)
    size, found = truth[:, 2:] - truth[:, :2], copies.boxes[0, :, 2:] - copies.boxes[0, :, :2]
    assert ((found - size).abs() <= 0.4 * size).all()
    assert (((copies.boxes[0, :, :2] + found / 2) - (truth[:, :2] + size / 2)).abs() <= 0.2 * size + 1e-4).all()
    assert paired_iou(copies.boxes[0], truth).max() < 1 and len(copies.boxes[0].unique(dim=0)) == 6


def test_labels_are_flipped_with_the_chance_asked_for():
    torch.manual_seed(0)
    denoising = Denoising(num_classes=3, hidden_dim=1, queries=4000, label_noise=0.3)
    denoising.class_features.weight.data = torch.tensor([[0.0], [1], [2]])
    copies = denoising(TARGETS)
    right = copies.features[0, :, 0] == TARGETS[0].gt_classes.repeat(copies.groups)
    assert abs(float(right.float().mean()) - (0.7 + 0.3 / 3)) < 0.02


def test_proposals_see_no_copy_and_groups_no_other_group():
    hidden = noised().hidden_beside(2)
    full = ~hidden[0]
    assert full[:2, :2].all() and not full[:2, 2:].any()
    assert full[2:, :2].all()
    group = torch.arange(6) // 2
    assert torch.equal(full[2:, 2:], group[:, None] == group)
    # In the second image every second place is empty: it is seen by itself alone.
    assert torch.equal(~hidden[1, 2:, 2:], torch.eye(6, dtype=torch.bool))
    assert not hidden.all(-1).any(), "a row that sees nothing would become NaN"


def test_copies_are_paired_with_their_objects():
    pairs = noised().pairs([2, 1], stages=2)
    assert pairs.shape == (4, 18)
    first = pairs[:, pairs[0] == 0]
    assert torch.equal(first[1:], pairs[1:, pairs[0] == 1])
    assert first[1:, first[1] == 0].tolist() == [[0] * 6, [0, 1, 2, 3, 4, 5], [0, 1] * 3]
    assert first[1:, first[1] == 1].tolist() == [[1] * 3, [0, 2, 4], [2] * 3]


def model(queries=6):
    cfg = small_config()
    cfg.MODEL.SparseRCNN.DENOISING_QUERIES = queries
    torch.manual_seed(0)
    return build_model(cfg).train()


def test_nothing_leaks_into_what_proposals_learn():
    """Without denoising the losses of proposals, and their gradients, are the same."""
    ours = model()
    losses = ours(training_batch())
    of_copies = {name for name in losses if name.endswith("_dn")}
    assert {"loss_ce_dn", "loss_bbox_0_dn", "loss_giou_dn"} <= of_copies
    sum(loss for name, loss in losses.items() if name not in of_copies).backward()
    assert ours.denoising.class_features.weight.grad is None or not ours.denoising.class_features.weight.grad.any()
    gradients = {name: p.grad.clone() for name, p in ours.named_parameters() if "denoising" not in name}
    ours.zero_grad()
    ours.denoising = None
    plain = ours(training_batch())
    sum(plain.values()).backward()
    for name, loss in plain.items():
        assert_close(losses[name], loss, rtol=1e-4, atol=1e-5)
    largest = max(g.norm() for g in gradients.values())
    for name, p in ours.named_parameters():
        assert (p.grad - gradients[name]).norm() <= 1e-2 * p.grad.norm() + 1e-5 * largest, name


def test_denoising_teaches_stages_backbone_and_class_features():
    ours = model()
    losses = ours(training_batch())
    sum(loss for name, loss in losses.items() if name.endswith("_dn")).backward()
    for parameter in (
        ours.denoising.class_features.weight,
        ours.head.head_series[1].bboxes_delta.weight,
        ours.backbone.bottom_up.stem.conv1.weight,
    ):
        assert parameter.grad.abs().sum() > 0


def test_a_batch_without_objects():
    batch = training_batch()
    for inputs in batch:
        inputs["instances"] = inputs["instances"][:0]
    ours = model()
    losses = ours(batch)
    assert losses["loss_ce_dn"] == 0 and losses["loss_bbox_dn"] == 0
    sum(losses.values()).backward()
    assert ours.denoising.class_features.weight.grad is not None
