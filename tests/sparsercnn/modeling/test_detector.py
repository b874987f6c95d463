"""The meta-architecture: names and shapes of the published models, inputs, outputs and what a batch must not change."""

import json

import pytest
import torch
from detectron2.modeling import build_model
from torch.testing import assert_close

from sparsercnn import SparseRCNN, load_config
from sparsercnn.errors import InputError

from ..golden import GOLDEN
from ..models import image, small_config, small_model, training_batch

CONFIGS = GOLDEN.parents[1] / "configs"
PUBLISHED = {"r50_100pro": (50, 100), "r50_300pro": (50, 300), "r101_100pro": (101, 100), "r101_300pro": (101, 300)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_state_dict_of_the_published_models(name):
    cfg = load_config(CONFIGS / "Base-SparseRCNN.yaml")
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.SparseRCNN.NUM_PROPOSALS = PUBLISHED[name]
    with torch.device("meta"):
        model = SparseRCNN(cfg)
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert shapes == json.loads((GOLDEN / f"state_dict_{name}.json").read_text())


@pytest.mark.parametrize("use_focal", [True, False])
def test_training_losses_reach_every_parameter(use_focal):
    model = small_model(use_focal=use_focal).train()
    losses = model(training_batch())
    assert {"loss_ce", "loss_bbox", "loss_giou", "loss_ce_0"} <= losses.keys()
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        # Boxes read only the levels of their size, which leaves the output convolutions of other levels at zero.
        assert parameter.grad is not None, name
        assert "fpn_output" in name or parameter.grad.abs().sum() > 0, name


def test_images_without_objects_are_valid():
    batch = training_batch()
    for inputs in batch:
        inputs["instances"] = inputs["instances"][:0]
    losses = small_model().train()(batch)
    assert losses["loss_bbox"] == 0 and losses["loss_giou"] == 0 and losses["loss_ce"] > 0


@pytest.mark.parametrize("use_focal", [True, False])
def test_results_are_sorted_clipped_and_in_the_output_size(use_focal):
    model = small_model(use_focal=use_focal)
    (result,) = model([{"image": image((64, 96)), "height": 128, "width": 192}])
    instances = result["instances"]
    assert instances.image_size == (128, 192)
    assert len(instances) <= 10 and len(instances) > 0
    assert torch.equal(instances.scores, instances.scores.sort(descending=True).values)
    boxes = instances.pred_boxes.tensor
    assert (boxes >= 0).all() and (boxes[:, [0, 2]] <= 192).all() and (boxes[:, [1, 3]] <= 128).all()
    assert instances.pred_classes.max() < 3


def test_one_proposal_can_yield_two_classes():
    """The focal variant keeps the N best (class, proposal) pairs, not the best class of each proposal."""
    model = small_model()
    logits = torch.full((1, 10, 3), -5.0)
    logits[0, 4] = torch.tensor([3.0, 2.0, -5.0])
    boxes = torch.rand(1, 10, 4)
    (instances,) = model.select(logits, boxes, [(64, 96)])
    assert instances.pred_classes[:2].tolist() == [0, 1]
    assert torch.equal(instances.pred_boxes.tensor[0], instances.pred_boxes.tensor[1])
    assert torch.equal(instances.pred_boxes.tensor[0], boxes[0, 4])
    assert_close(instances.scores[:2], torch.tensor([3.0, 2.0]).sigmoid())


def test_an_image_alone_equals_the_image_in_a_batch():
    model = small_model()
    inputs = [{"image": image((64, 96), seed=s)} for s in range(3)]
    together = model(inputs)
    for single, result in zip(inputs, together, strict=True):
        (alone,) = model([single])
        assert_close(alone["instances"].scores, result["instances"].scores, rtol=1e-4, atol=1e-5)
        assert_close(alone["instances"].pred_boxes.tensor, result["instances"].pred_boxes.tensor, rtol=1e-3, atol=1e-2)


def test_proposals_start_as_the_unpadded_image():
    model = small_model()
    images = model.preprocess_image([{"image": image((64, 96))}, {"image": image((50, 40))}])
    boxes = model.propose({}, images).boxes
    assert torch.equal(boxes[0], torch.tensor([[0.0, 0, 96, 64]]).expand(10, 4))
    assert torch.equal(boxes[1], torch.tensor([[0.0, 0, 40, 50]]).expand(10, 4))


class SupervisedBackbone(torch.nn.Module):
    """Passes its features on, in training also as an auxiliary pyramid of weight 0.25."""

    auxiliary_pyramids = {"copy_": 0.25}

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.size_divisibility, self.padding_constraints = backbone.size_divisibility, backbone.padding_constraints

    def forward(self, images):
        features = self.backbone(images)
        return features | {f"copy_{name}": x for name, x in features.items()} if self.training else features


def test_auxiliary_pyramids_are_supervised_in_training_only():
    model = small_model()
    plain_result = model([{"image": image((64, 96))}])
    model.backbone = SupervisedBackbone(model.backbone)
    losses = model.train()(training_batch())
    for name in ("loss_ce", "loss_bbox_0"):
        assert_close(losses[f"{name}_copy"], losses[name] * 0.25)
    result = model.eval()([{"image": image((64, 96))}])
    assert torch.equal(result[0]["instances"].scores, plain_result[0]["instances"].scores)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["MODEL.ROI_HEADS.IN_FEATURES", ["p2", "p3", "p9"]], "asks for p9, but .* makes p2, p3, p4, p5"),
        (["MODEL.FPN.OUT_CHANNELS", 64], "HIDDEN_DIM"),
    ],
)
def test_a_neck_that_does_not_fit_is_named(options, message):
    cfg = small_config()
    cfg.merge_from_list(options)
    with pytest.raises(InputError, match=message):
        build_model(cfg)
