"""Sparse R-CNN on every neck: it trains, and prepared for inference it gives the same."""

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from torch.testing import assert_close

from necks import NECK_REGISTRY
from sparsercnn import load_config, prepare_for_inference
from sparsercnn.fast.training import prepare_for_training
from sparsercnn.visualization.stages import predict_stages

NECKS = sorted(name for name, _ in NECK_REGISTRY)
OPTIONS = """
MODEL.META_ARCHITECTURE SparseRCNN MODEL.DEVICE cpu MODEL.BACKBONE.NAME build_neck_backbone MODEL.BACKBONE.FREEZE_AT 0
MODEL.RESNETS.DEPTH 18 MODEL.RESNETS.RES2_OUT_CHANNELS 64 MODEL.RESNETS.NORM BN
MODEL.RESNETS.OUT_FEATURES ["res2","res3","res4","res5"] MODEL.NECK.NORM BN MODEL.NECK.OUT_CHANNELS 16
MODEL.SparseRCNN.HIDDEN_DIM 16 MODEL.SparseRCNN.NHEADS 4 MODEL.SparseRCNN.DIM_FEEDFORWARD 32
MODEL.SparseRCNN.DIM_DYNAMIC 4 MODEL.SparseRCNN.NUM_HEADS 2 MODEL.SparseRCNN.NUM_PROPOSALS 8
MODEL.SparseRCNN.NUM_CLASSES 3
"""


def config(neck: str) -> CfgNode:
    return load_config(options=[*OPTIONS.split(), "MODEL.NECK.NAME", neck])


def batch() -> list[dict]:
    target = Instances((64, 96))
    target.gt_boxes = Boxes(torch.tensor([[8.0, 8.0, 40.0, 50.0], [30.0, 5.0, 90.0, 60.0]]))
    target.gt_classes = torch.tensor([0, 2])
    image = torch.randint(256, (3, 64, 96), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return [{"image": image, "instances": target}] * 2


@pytest.mark.parametrize("neck", NECKS)
def test_trains_and_is_the_same_when_prepared(neck):
    torch.manual_seed(0)
    cfg = config(neck)
    model = build_model(cfg).train()
    prepare_for_training(model)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    totals = []
    for _ in range(12):
        total = sum(model(batch()).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < totals[0]
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    model.eval()
    (ours,) = prepare_for_inference(model).run(predict_stages, batch()[:1])
    (plain,) = predict_stages(model, batch()[:1])
    assert_close(ours[-1].scores, plain[-1].scores, rtol=0, atol=1e-4)
    assert_close(ours[-1].pred_boxes.tensor, plain[-1].pred_boxes.tensor, rtol=0, atol=0.05)
