"""The switches that make training need fewer iterations: together, and switched off."""

import pytest
import torch
from detectron2.modeling import build_model
from torch.testing import assert_close

from sparsercnn import prepare_for_inference
from sparsercnn.errors import InputError
from sparsercnn.visualization.stages import predict_stages

from ..models import image, small_config, small_model, training_batch

ALL = {
    "ASSIGNMENT": "dynamic_k",
    "CLASS_LOSS": "matchability",
    "PROPOSALS": "dense",
    "DENOISING_QUERIES": 6,
    "SHARED_STAGES": True,
}


def detector(**options):
    cfg = small_config()
    cfg.merge_from_list([x for key, value in options.items() for x in (f"MODEL.SparseRCNN.{key}", value)])
    torch.manual_seed(0)
    return build_model(cfg)


def test_all_together_reach_every_parameter():
    model = detector(**ALL).train()
    losses = model(training_batch())
    assert {"loss_ce", "loss_ce_0", "loss_ce_dn", "loss_giou_0_dn", "loss_bbox_dense"} <= losses.keys()
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert "fpn_output" in name or parameter.grad.abs().sum() > 0, name


@torch.no_grad()
def test_prepared_together_they_give_the_same():
    model = detector(**ALL).eval()
    torch.nn.init.normal_(model.dense_queries.class_logits.weight, std=0.1)
    inputs = [{"image": image((64, 96))}]
    prepared = prepare_for_inference(model)
    for ours, theirs in zip(prepared.run(predict_stages, inputs), predict_stages(model, inputs), strict=True):
        assert_close(ours[-1].scores, theirs[-1].scores, rtol=0, atol=1e-4)
        assert_close(ours[-1].pred_boxes.tensor, theirs[-1].pred_boxes.tensor, rtol=0, atol=0.05)


def test_shared_stages_have_one_set_of_weights_under_every_name():
    shared, separate = detector(SHARED_STAGES=True), detector()
    assert shared.state_dict().keys() == separate.state_dict().keys()
    of_head = sum(p.numel() for p in separate.head.head_series[0].parameters())
    difference = sum(p.numel() for p in separate.parameters()) - sum(p.numel() for p in shared.parameters())
    assert difference == of_head
    assert shared.head.head_series[0] is shared.head.head_series[1]


@torch.no_grad()
def test_training_only_switches_leave_inference_as_it_is():
    plain = small_model()
    model = detector(ASSIGNMENT="dynamic_k", CLASS_LOSS="varifocal", DENOISING_QUERIES=6).eval()
    model.load_state_dict(plain.state_dict(), strict=False)
    inputs = [{"image": image((64, 96))}]
    (ours,), (expected,) = model(inputs), plain(inputs)
    assert torch.equal(ours["instances"].scores, expected["instances"].scores)
    assert torch.equal(ours["instances"].pred_boxes.tensor, expected["instances"].pred_boxes.tensor)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ASSIGNMENT": "dynamic"}, "ASSIGNMENT is 'dynamic'; choose .* did you mean dynamic_k"),
        ({"PROPOSALS": "grids"}, "PROPOSALS is 'grids'; choose .* did you mean grid"),
        ({"DENOISING_QUERIES": 5, "USE_FOCAL": False}, "DENOISING_QUERIES 5 needs USE_FOCAL True"),
    ],
)
def test_mistakes_name_the_key(options, message):
    with pytest.raises(InputError, match=message):
        detector(**options)
