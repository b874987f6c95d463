"""Whole two-stage models: every kind of config, inputs and outputs, empty images, and weights of published models."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import GeneralizedRCNN, ProposalNetwork, build_model
from detectron2.modeling.roi_heads import Res5ROIHeads, StandardROIHeads
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from torch.testing import assert_close

CONFIGS = Path(__file__).parents[2] / "configs" / "fasterrcnn"
NARROW = """
MODEL.DEVICE cpu MODEL.RESNETS.STEM_OUT_CHANNELS 4 MODEL.RESNETS.RES2_OUT_CHANNELS 8 MODEL.RESNETS.WIDTH_PER_GROUP 2
MODEL.FPN.OUT_CHANNELS 8 MODEL.RPN.POST_NMS_TOPK_TRAIN 60 MODEL.RPN.POST_NMS_TOPK_TEST 40 MODEL.ROI_HEADS.NUM_CLASSES 3
MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.0 MODEL.ROI_BOX_HEAD.FC_DIM 16
"""


def small_config(name: str, *options) -> CfgNode:
    cfg = get_cfg()
    cfg.merge_from_file(str(CONFIGS / f"{name}.yaml"))
    cfg.merge_from_list([*NARROW.split(), *options])
    return cfg


def small_model(name: str = "faster_rcnn_R_50_FPN_1x", *options) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model(small_config(name, *options))


def image(boxes=((8, 8, 40, 50), (30, 5, 90, 60)), size=(64, 96), **more) -> dict:
    target = Instances(size, gt_boxes=Boxes(torch.tensor(boxes).float()), gt_classes=torch.arange(len(boxes)))
    pixels = torch.randint(256, (3, *size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return {"image": pixels, "instances": target, **more}


def train(model, inputs):
    with EventStorage() as storage:
        losses = model.train()(inputs)
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    return losses, storage


ALL_LOSSES = {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg"}


@pytest.mark.parametrize("name", ["FPN", "C4", "DC5"])
def test_faster_rcnn_trains_and_detects(name):
    model = small_model(f"faster_rcnn_R_50_{name}_1x")
    assert isinstance(model, GeneralizedRCNN)
    assert isinstance(model.roi_heads, Res5ROIHeads if name == "C4" else StandardROIHeads)
    losses, _ = train(model, [image(), image(((0, 0, 50, 50),), (70, 50))])
    assert set(losses) == ALL_LOSSES
    untrained = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert untrained == []

    with torch.no_grad():
        first, second = model.eval()([image(height=128, width=192), image(size=(70, 50))])
    assert first["instances"].image_size == (128, 192) and second["instances"].image_size == (70, 50)
    boxes = first["instances"].pred_boxes.tensor
    assert len(boxes) and boxes.min() >= 0 and boxes[:, 2].max() > 96 and boxes[:, 2].max() <= 192
    assert (first["instances"].scores.diff() <= 0).all()


@pytest.mark.parametrize("name", ["FPN", "C4"])
def test_proposal_network_trains_and_proposes(name):
    model = small_model(f"rpn_R_50_{name}_1x")
    assert isinstance(model, ProposalNetwork)
    losses, _ = train(model, [image()])
    assert set(losses) == {"loss_rpn_cls", "loss_rpn_loc"}
    (output,) = model.eval()([image(height=128, width=192)])
    proposals = output["proposals"]
    assert proposals.image_size == (128, 192) and 0 < len(proposals) <= 40
    assert set(proposals.get_fields()) == {"proposal_boxes", "objectness_logits"}
    assert (proposals.objectness_logits.diff() <= 0).all()


def test_fast_rcnn_takes_its_proposals_from_the_input():
    model = small_model("fast_rcnn_R_50_FPN_1x")
    assert model.proposal_generator is None
    boxes = Boxes(torch.tensor([[10.0, 10, 42, 52], [0, 0, 20, 20]]))
    proposals = Instances((64, 96), proposal_boxes=boxes, objectness_logits=torch.tensor([2.0, 1.0]))
    losses, _ = train(model, [image(proposals=proposals)])
    assert set(losses) == {"loss_cls", "loss_box_reg"}
    (output,) = model.eval()([image(proposals=proposals)])
    assert 0 < len(output["instances"]) <= 6  # two proposals, three classes
    with pytest.raises(AssertionError):
        model([image()])


@pytest.mark.parametrize("name", ["faster_rcnn_R_50_FPN_1x", "faster_rcnn_R_50_C4_1x"])
@pytest.mark.parametrize("others", [[], [image()]])
def test_images_without_objects(name, others):
    nothing = torch.zeros(0, 4).tolist()
    losses, _ = train(small_model(name), [image(nothing), *others])
    assert set(losses) == ALL_LOSSES
    if not others:
        assert losses["loss_rpn_loc"] == 0 and losses["loss_box_reg"] == 0


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_features_that_are_not_finite_give_nothing(value):
    model = small_model().eval()
    images = ImageList(torch.zeros(1, 3, 64, 96), [(60, 90)])
    features = {f"p{k}": torch.full((1, 8, 256 // 2**k, 256 // 2**k), value) for k in range(2, 7)}
    (proposals,), _ = model.proposal_generator(images, features)
    assert len(proposals) == 0
    given = Instances((60, 90), proposal_boxes=Boxes([[10, 10, 20, 20]]), objectness_logits=torch.ones(1))
    (detections,), _ = model.roi_heads(images, features, [given])
    assert len(detections) == 0


def test_detections_in_the_resolution_of_the_input_or_for_given_boxes():
    model = small_model().eval()
    inputs = [image(height=128, width=192)]
    with torch.no_grad():
        (raw,) = model.inference(inputs, do_postprocess=False)
        expected = 2 * raw.pred_boxes.tensor[raw.pred_boxes.nonempty()]
        (scaled,) = model.inference(inputs)
        (given,) = model.inference(inputs, [raw])
    assert raw.image_size == (64, 96)
    assert_close(scaled["instances"].pred_boxes.tensor, expected)
    assert_close(given["instances"].pred_boxes.tensor, scaled["instances"].pred_boxes.tensor)


def test_images_are_normalized_and_padded_for_the_backbone():
    model = small_model("faster_rcnn_R_50_FPN_1x", "MODEL.PIXEL_MEAN", [1.0, 2.0, 3.0], "MODEL.PIXEL_STD", [1, 2, 4])
    images = model.preprocess_image([{"image": torch.full((3, 40, 50), 5)}])
    assert images.tensor.shape == (1, 3, 64, 64) and images.image_sizes == [(40, 50)]
    assert images.tensor[0, :, 39, 49].tolist() == [4, 1.5, 0.5]
    assert not images.tensor[0, :, 40:].any()
    assert not any("pixel" in name for name in model.state_dict())


@pytest.mark.parametrize("period", [0, 1])
def test_training_images_are_drawn(period):
    _, storage = train(small_model("faster_rcnn_R_50_FPN_1x", "VIS_PERIOD", period), [image()])
    assert len(storage._vis_data) == period
    for name, picture, _ in storage._vis_data:
        assert name == "Left: GT bounding boxes;  Right: Predicted proposals"
        assert picture.shape == (3, 64, 192) and picture.dtype == np.uint8


@pytest.mark.parametrize("loss", ["smooth_l1", "giou", "diou", "ciou"])
def test_every_box_loss_trains(loss):
    options = ("MODEL.RPN.BBOX_REG_LOSS_TYPE", loss, "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", loss)
    losses, _ = train(small_model("faster_rcnn_R_50_FPN_1x", *options), [image()])
    assert losses["loss_rpn_loc"] > 0 and losses["loss_box_reg"] > 0


def test_weights_of_the_model_zoo_load_completely(tmp_path):
    """The zoo's files are pickles of arrays; the older ones hold anchors."""
    model, other = small_model(), small_model()
    weights = {name: np.random.rand(*value.shape).astype("float32") for name, value in model.state_dict().items()}
    anchors = {"proposal_generator.anchor_generator.cell_anchors.0": np.zeros((3, 4), "float32")}
    path = tmp_path / "model_final_280758.pkl"
    path.write_bytes(pickle.dumps({"model": {**weights, **anchors}, "__author__": "Detectron2 Model Zoo"}))
    checkpointer = DetectionCheckpointer(other)
    incompatible = checkpointer._load_model(checkpointer._load_file(str(path)))
    assert incompatible.missing_keys == [] and incompatible.unexpected_keys == []
    assert incompatible.incorrect_shapes == []
    for name, value in other.state_dict().items():
        assert np.array_equal(value.numpy(), weights[name])


@pytest.mark.parametrize("name", ["FPN", "C4"])
def test_caffe2_names_of_heads(tmp_path, name):
    model = small_model(f"faster_rcnn_R_50_{name}_1x")
    pyramid = "_fpn2" if name == "FPN" else ""
    renamed = {
        f"conv_rpn{pyramid}": "proposal_generator.rpn_head.conv",
        f"rpn_bbox_pred{pyramid}": "proposal_generator.rpn_head.anchor_deltas",
        f"rpn_cls_logits{pyramid}": "proposal_generator.rpn_head.objectness_logits",
        "cls_score": "roi_heads.box_predictor.cls_score",
        "bbox_pred": "roi_heads.box_predictor.bbox_pred",
    }
    if name == "FPN":
        renamed |= {"fc6": "roi_heads.box_head.fc1", "fc7": "roi_heads.box_head.fc2"}
    state = model.state_dict()
    blobs = {}
    for old, new in renamed.items():
        for end, suffix in (("w", "weight"), ("b", "bias")):
            shape = list(state[f"{new}.{suffix}"].shape)
            if old == "bbox_pred":
                shape[0] += 4  # of background, the first class
            blobs[f"{old}_{end}"] = np.random.rand(*shape).astype("float32")
    (tmp_path / "model_final.pkl").write_bytes(pickle.dumps({"blobs": blobs}))
    DetectionCheckpointer(model).load(str(tmp_path / "model_final.pkl"))

    state = model.state_dict()
    for old, new in renamed.items():
        stored = blobs[f"{old}_w"]
        if old == "cls_score":
            stored = np.concatenate([stored[1:], stored[:1]])
        elif old == "bbox_pred":
            stored = stored[4:]
        assert np.array_equal(state[f"{new}.weight"].numpy(), stored), old
