"""The head, matching and losses against reference cases, and properties they must have."""

import math

import pytest
import torch
from detectron2.layers import ShapeSpec
from torch.testing import assert_close
from torchvision.ops import generalized_box_iou

from sparsercnn import DynamicHead, HungarianMatcher, SetCriterion
from sparsercnn.errors import InputError
from sparsercnn.modeling.boxes import generalized_iou
from sparsercnn.modeling.head import RefinementStage

from ..golden import HEAD_CASES, below, head_and_inputs, head_config, load

POOLERS = ["fused", "ROIPooler"]


def close(actual, expected, tolerance=1e-4):
    """The norm of the difference is below 1e-4 of the norm of the expected tensor."""
    difference = float((actual.detach() - expected).norm())
    assert difference <= tolerance * max(float(expected.norm()), 1e-3), (difference, float(expected.norm()))


@pytest.mark.parametrize("pooler", POOLERS)
@pytest.mark.parametrize("name", HEAD_CASES)
def test_logits_and_boxes_of_every_stage(name, pooler):
    case, _, head, inputs, _ = head_and_inputs(name, pooler)
    logits, boxes = head(*inputs)
    close(logits, case["output/logits"])
    close(boxes, case["output/boxes"])


@pytest.mark.parametrize("name", HEAD_CASES)
def test_matched_pairs(name):
    case, cfg, _, _, targets = head_and_inputs(name)
    assignment = HungarianMatcher(cfg)(case["output/logits"], case["output/boxes"], targets)
    for stage, images in enumerate(assignment):
        for image, pairs in enumerate(images):
            assert torch.equal(torch.stack(pairs), case[f"match/{stage}/{image}"])


@pytest.mark.parametrize("pooler", POOLERS)
@pytest.mark.parametrize("name", HEAD_CASES)
def test_losses(name, pooler):
    case, cfg, head, inputs, targets = head_and_inputs(name, pooler)
    losses = SetCriterion(cfg)(*head(*inputs), targets)
    weights = {"loss_ce": 2.0, "loss_bbox": 5.0, "loss_giou": 2.0}
    expected = below(case, "loss_unweighted")
    assert losses.keys() == expected.keys()
    for loss_name, value in expected.items():
        kind = "_".join(loss_name.split("_")[:2])
        close(losses[loss_name], weights[kind] * value)
    close(sum(losses.values()), case["loss_total"])


def gradients_of(cfg, head, inputs, targets):
    """Gradients of the total loss: of parameters, features p2 to p5 and proposal features, by name."""
    sum(SetCriterion(cfg)(*head(*inputs), targets).values()).backward()
    features, _, proposal_features = inputs
    gradients = {name: p.grad for name, p in head.named_parameters()}
    gradients |= {f"p{k}": f.grad for k, f in zip(range(2, 6), features, strict=True)}
    return gradients | {"proposal_features": proposal_features.grad}


def double(inputs):
    features, boxes, proposal_features = inputs
    features = [f.detach().double().requires_grad_() for f in features]
    return features, boxes.double(), proposal_features.detach().double().requires_grad_()


@pytest.mark.parametrize("name", HEAD_CASES)
def test_gradients(name):
    """Three cascaded stages enlarge rounding ten-thousandfold: the reference, in float32, is itself up to 0.3 % away
    from the exact gradient. Ours must be exact in float64, and in float32 as close to the reference as that is.
    """
    case, cfg, head, inputs, targets = head_and_inputs(name, "ROIPooler")
    rounded = gradients_of(cfg, head, inputs, targets)
    head.zero_grad()
    exact = gradients_of(cfg, head.double(), double(inputs), targets)
    for parameter, expected in below(case, "grad").items():
        own_distance = float((exact[parameter] - expected).norm())
        assert own_distance <= 5e-3 * max(float(expected.norm()), 1e-3), parameter
        distance = float((rounded[parameter] - expected).norm())
        assert distance <= max(own_distance, 1e-4 * float(expected.norm()), 1e-7), parameter
    for prefix in ("gradnorm", "gradnorm_feature"):
        for parameter, norm in below(case, prefix).items():
            close(exact[parameter].norm(), norm, tolerance=5e-3)


@pytest.mark.parametrize("name", HEAD_CASES)
def test_both_poolers_have_the_same_gradients(name):
    """In double precision, where rounding does not blur the comparison."""
    both = []
    for pooler in POOLERS:
        _, cfg, head, inputs, targets = head_and_inputs(name, pooler)
        both.append(gradients_of(cfg, head.double(), double(inputs), targets))
    for parameter, expected in both[1].items():
        close(both[0][parameter], expected, tolerance=1e-8)


@pytest.mark.parametrize("num_classes", [64, 256, 2048])
def test_only_the_class_bias_gets_the_prior(num_classes):
    """A class count that equals another layer's width must not change how that layer starts."""
    cfg = head_config(load("head_focal"), use_focal=True)
    node = cfg.MODEL.SparseRCNN
    node.HIDDEN_DIM, node.DIM_FEEDFORWARD, node.DIM_DYNAMIC, node.NUM_CLASSES = 256, 2048, 64, num_classes
    node.NUM_HEADS = 1
    shapes = {f"p{k}": ShapeSpec(channels=256, stride=2**k) for k in range(2, 6)}
    stage = DynamicHead(cfg, shapes).head_series[0]
    assert_close(stage.class_logits.bias.sigmoid(), torch.full((num_classes,), 0.01))
    prior = -math.log(0.99 / 0.01)
    for name, parameter in stage.named_parameters():
        if name != "class_logits.bias":
            assert not torch.isclose(parameter, torch.tensor(prior)).any(), name
            assert parameter.abs().max() < 2, name


def test_head_without_towers():
    case = load("head_focal")
    cfg = head_config(case, use_focal=True)
    cfg.MODEL.SparseRCNN.NUM_CLS = cfg.MODEL.SparseRCNN.NUM_REG = 0
    shapes = {f"p{k}": ShapeSpec(channels=16, stride=2**k) for k in range(2, 6)}
    head = DynamicHead(cfg, shapes)
    features = [case[f"input/p{k}"].float() for k in range(2, 6)]
    logits, boxes = head(features, case["input/boxes"], case["input/proposal_features"])
    assert logits.shape == (3, 2, 12, 5) and boxes.shape == (3, 2, 12, 4)
    assert not any("module" in name for name in head.state_dict())


@torch.no_grad()
def test_under_autocast_what_follows_the_interaction_is_exact(monkeypatch):
    stage = RefinementStage(32, 5, nheads=4, dim_feedforward=64, dim_dynamic=8, num_cls=1, num_reg=1)
    monkeypatch.setattr(stage, "attend", lambda objects, hidden: objects)
    monkeypatch.setattr(stage.inst_interact, "forward", lambda objects, roi_features: torch.zeros_like(objects))
    inputs = torch.randn(2, 3, 32), torch.zeros(6, 49, 32)
    with torch.autocast("cpu", torch.bfloat16):
        results = stage(*inputs)
    for actual, expected in zip(results, stage(*inputs), strict=True):
        assert torch.equal(actual, expected)


def test_layers_of_full_precision_are_those_that_autocast_leaves_alone():
    stage = RefinementStage(32, 5, nheads=4, dim_feedforward=64, dim_dynamic=8, num_cls=1, num_reg=1)
    seen = {}
    for name, layer in stage.named_modules():
        if isinstance(layer, torch.nn.Linear):
            layer.register_forward_hook(lambda m, x, y, name=name: seen.update({name: y.dtype}))
    with torch.autocast("cpu", torch.bfloat16):
        stage(torch.randn(2, 3, 32), torch.randn(6, 49, 32))
    full = {m for layer in stage.full_precision_layers() for m in layer.modules()}
    for name, dtype in seen.items():
        assert (dtype == torch.float32) == (stage.get_submodule(name) in full), name


def test_more_objects_than_proposals():
    case, cfg, _, _, targets = head_and_inputs("head_focal")
    logits, boxes = case["output/logits"][:, :, :3], case["output/boxes"][:, :, :3]
    for images in HungarianMatcher(cfg)(logits, boxes, targets):
        for proposals, objects in images:
            assert proposals.tolist() == [0, 1, 2] and len(set(objects.tolist())) == 3
    losses = SetCriterion(cfg)(logits, boxes, targets)
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_padding_of_the_batch_does_not_change_the_pairs():
    """Images with different numbers of objects are matched together as they are alone."""
    case, cfg, _, _, targets = head_and_inputs("head_focal")
    matcher = HungarianMatcher(cfg)
    targets[1] = targets[1][:2]
    together = matcher(case["output/logits"], case["output/boxes"], targets)
    for image in range(2):
        alone = matcher(case["output/logits"][:, [image]], case["output/boxes"][:, [image]], [targets[image]])
        for stage in range(3):
            assert torch.equal(torch.stack(together[stage][image]), torch.stack(alone[stage][0]))


def test_only_the_last_stage_without_deep_supervision():
    case, cfg, _, _, targets = head_and_inputs("head_focal")
    cfg.MODEL.SparseRCNN.DEEP_SUPERVISION = False
    losses = SetCriterion(cfg)(case["output/logits"], case["output/boxes"], targets)
    assert losses.keys() == {"loss_ce", "loss_bbox", "loss_giou"}
    close(losses["loss_giou"] / 2, case["loss_unweighted/loss_giou"])


def test_generalized_iou_of_all_pairs():
    torch.manual_seed(0)
    first, second = (torch.rand(3, n, 2, 2).sort(dim=2).values.flatten(2) * 100 for n in (5, 4))
    found = generalized_iou(first[:, :, None], second[:, None])
    expected = torch.stack([generalized_box_iou(a, b) for a, b in zip(first, second, strict=True)])
    close(found, expected)


def test_generalized_iou_of_empty_boxes_has_finite_gradients():
    boxes = torch.tensor([[3.0, 4, 3, 4], [3, 4, 3, 9], [0, 0, 10, 10]], requires_grad=True)
    iou = generalized_iou(boxes[:, None], boxes.detach())
    assert (iou.abs() <= 1).all() and iou[0, 0] == 0
    (gradient,) = torch.autograd.grad(iou.sum(), boxes)
    assert gradient.isfinite().all()


def test_diverged_predictions_are_named():
    case, cfg, _, _, targets = head_and_inputs("head_focal")
    with pytest.raises(FloatingPointError, match="SOLVER.BASE_LR"):
        HungarianMatcher(cfg)(case["output/logits"] * float("nan"), case["output/boxes"], targets)


def test_boxes_turned_inside_out_are_no_match():
    case, cfg, _, _, targets = head_and_inputs("head_focal")
    boxes = case["output/boxes"].clone()
    boxes[0, 0, 0] = boxes[0, 0, 0, [2, 3, 0, 1]]
    with pytest.raises(FloatingPointError, match="inside out"):
        HungarianMatcher(cfg)(case["output/logits"], boxes, targets)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("MODEL.ROI_ROUTING.MODE", "nearest", "level, adaptive, soft"),
        ("MODEL.ROI_ROUTING.POOLER", "triton", "fused, ROIPooler"),
        ("MODEL.ROI_HEADS.IN_FEATURES", ["p2", "p4"], "IN_FEATURES"),
        ("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIPool", "POOLER_TYPE"),
        ("MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO", 0, "POOLER_SAMPLING_RATIO"),
        ("MODEL.SparseRCNN.NUM_DYNAMIC", 3, "NUM_DYNAMIC"),
        ("MODEL.SparseRCNN.ACTIVATION", "swish", "ACTIVATION"),
        ("MODEL.SparseRCNN.NHEADS", 5, "NHEADS"),
    ],
)
def test_bad_configuration_is_named(key, value, message):
    cfg = head_config(load("head_focal"), use_focal=True)
    cfg.merge_from_list([key, value])
    shapes = {f"p{k}": ShapeSpec(channels=16, stride=2**k) for k in range(2, 6)}
    with pytest.raises(InputError, match=message):
        DynamicHead(cfg, shapes)
