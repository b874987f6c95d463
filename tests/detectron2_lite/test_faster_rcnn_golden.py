"""Faster R-CNN against the numbers that official detectron2 gives for the same config, weights and images."""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch.testing import assert_close

ROOT = Path(__file__).parents[2]
GOLDEN = np.load(ROOT / "tests" / "golden" / "faster_rcnn.npz")
SMALL = """
MODEL.DEVICE cpu MODEL.BACKBONE.FREEZE_AT 0
MODEL.RESNETS.DEPTH 18 MODEL.RESNETS.RES2_OUT_CHANNELS 64 MODEL.FPN.OUT_CHANNELS 32
MODEL.RPN.PRE_NMS_TOPK_TRAIN 500 MODEL.RPN.PRE_NMS_TOPK_TEST 300
MODEL.RPN.POST_NMS_TOPK_TRAIN 200 MODEL.RPN.POST_NMS_TOPK_TEST 100
MODEL.RPN.BATCH_SIZE_PER_IMAGE 1000000 MODEL.RPN.POSITIVE_FRACTION 1.0
MODEL.ROI_HEADS.NUM_CLASSES 5 MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.02
MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 1000000 MODEL.ROI_HEADS.POSITIVE_FRACTION 1.0
MODEL.ROI_BOX_HEAD.FC_DIM 64 MODEL.PIXEL_STD [57.375,57.12,58.395]
"""


def config(*options) -> CfgNode:
    cfg = get_cfg()
    cfg.merge_from_file(str(ROOT / "configs" / "fasterrcnn" / "Base-RCNN-FPN.yaml"))
    cfg.merge_from_list(list(options))
    return cfg


def fill_by_name(module: torch.nn.Module) -> None:
    """Give every tensor of the state dict values that follow from its name and shape alone.

    Deltas of anchors are left as they were drawn: their name looks like that of an anchor.
    """
    for name, tensor in module.state_dict().items():
        if not tensor.is_floating_point() or "anchor" in name:
            continue
        noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
        if tensor.dim() > 1:
            tensor.copy_(noise / math.sqrt(tensor[0].numel()))
        elif name.endswith("running_var"):
            tensor.copy_(1 + 0.1 * noise.abs())
        else:
            tensor.copy_(0.1 * noise + float(name.endswith(".weight")))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = build_model(config(*SMALL.split()))
    fill_by_name(model)
    return model


@pytest.fixture(scope="module")
def inputs():
    generator = torch.Generator().manual_seed(int(GOLDEN["seed"]))
    inputs = []
    for height, width in GOLDEN["sizes"].tolist():
        corner = torch.rand(4, 2, generator=generator) * torch.tensor([width * 0.6, height * 0.6])
        size = torch.rand(4, 2, generator=generator) * 60 + 12
        boxes = Boxes(torch.cat([corner, corner + size], dim=1))
        classes = torch.randint(0, 5, (4,), generator=generator)
        image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
        target = Instances((height, width), gt_boxes=boxes, gt_classes=classes)
        inputs.append({"image": image, "instances": target})
    return inputs


@pytest.fixture(scope="module")
def stages(model, inputs):
    """Features, anchors, proposals and detections."""
    with torch.no_grad():
        model.eval()
        images = model.preprocess_image(inputs)
        features = model.backbone(images.tensor)
        anchors = dict(zip(features, model.proposal_generator.anchor_generator(list(features.values())), strict=True))
        proposals, losses = model.proposal_generator(images, features)
        assert losses == {}
        return features, anchors, proposals, [output["instances"] for output in model(inputs)]


@pytest.fixture(scope="module")
def losses(model, inputs):
    """Losses, after whose backward pass the model has its gradients."""
    model.train()
    torch.manual_seed(0)
    with EventStorage():
        losses = model(inputs)
    sum(losses.values()).backward()
    return losses


def assert_golden(actual: torch.Tensor, key: str, atol: float = 0.0) -> None:
    assert_close(actual.detach(), torch.from_numpy(GOLDEN[key]), rtol=1e-4, atol=atol, msg=lambda m: f"{key}: {m}")


def test_the_inputs_are_those_of_the_golden_file(inputs):
    for i, x in enumerate(inputs):
        assert_golden(x["instances"].gt_boxes.tensor, f"target/{i}/boxes")
        assert_golden(x["instances"].gt_classes, f"target/{i}/classes")


def test_features_and_anchors(stages):
    features, anchors, _, _ = stages
    assert list(features) == ["p2", "p3", "p4", "p5", "p6"]
    for name, feature in features.items():
        assert_golden(feature.abs().mean(), f"feature_mean_abs/{name}")
        assert_golden(anchors[name].tensor[:: max(1, len(anchors[name]) // 50)], f"anchors/{name}")


def test_proposals(stages):
    for i, proposals in enumerate(stages[2]):
        # The tolerance in absolute terms is for sides at 0, in pixels.
        assert_golden(proposals.proposal_boxes.tensor, f"proposal/{i}/boxes", atol=1e-4)
        assert_golden(proposals.objectness_logits, f"proposal/{i}/logits")


def test_detections(stages):
    for i, detections in enumerate(stages[3]):
        assert_golden(detections.pred_boxes.tensor, f"result/{i}/boxes", atol=1e-4)
        assert_golden(detections.scores, f"result/{i}/scores")
        assert_golden(detections.pred_classes, f"result/{i}/classes")


@pytest.mark.parametrize("name", ["loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"])
def test_losses(losses, name):
    assert set(losses) == {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"}
    assert_golden(losses[name], f"loss/{name}")


def test_gradient_norms(model, losses):
    parameters = dict(model.named_parameters())
    names = [key for key in GOLDEN if key.startswith("gradnorm/")]
    assert len(names) == 17
    for name in names:
        assert_golden(parameters[name.removeprefix("gradnorm/")].grad.norm(), name)


@pytest.mark.parametrize("depth", [50, 101])
def test_state_dict_of_the_published_models(depth):
    model = build_model(config("MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", depth))
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    path = ROOT / "tests" / "golden" / f"state_dict_faster_rcnn_R_{depth}_FPN.json"
    assert shapes == json.loads(path.read_text())
