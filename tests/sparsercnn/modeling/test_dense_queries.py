"""Proposals from the best distinct locations of an image."""

import pytest
import torch
from detectron2.modeling import build_model
from torch.testing import assert_close

from sparsercnn import prepare_for_inference
from sparsercnn.errors import InputError
from sparsercnn.modeling.dense_queries import DensePredictions, DenseQueries

from ..models import image, small_config, training_batch


def detector(**options):
    cfg = small_config()
    cfg.MODEL.SparseRCNN.PROPOSALS = "dense"
    cfg.merge_from_list([x for key, value in options.items() for x in (f"MODEL.SparseRCNN.{key}", value)])
    torch.manual_seed(0)
    return build_model(cfg)


def propose(model, sizes=((64, 96), (50, 40))):
    images = model.preprocess_image([{"image": image(size)} for size in sizes])
    features = model.backbone(images.tensor)
    return model.propose(features, images), features


@torch.no_grad()
def test_proposals_lie_in_their_image_and_depend_on_it():
    model = detector().eval()
    torch.nn.init.normal_(model.dense_queries.class_logits.weight)
    proposals, _ = propose(model)
    assert proposals.boxes.shape == (2, 10, 4) and proposals.features.shape == (2, 10, 32)
    for boxes, (height, width) in zip(proposals.boxes, ((64, 96), (50, 40)), strict=True):
        assert (boxes >= 0).all() and (boxes[:, 0::2] <= width).all() and (boxes[:, 1::2] <= height).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all(), "locations of the padding were chosen"
        assert len(boxes.unique(dim=0)) == 10
    assert not torch.equal(propose(model, ((64, 96),))[0].boxes[0], propose(model, ((96, 64),))[0].boxes[0])


def test_distinct_locations_come_first():
    """Of boxes that nearly coincide the best is chosen; the others follow only where places are left."""
    dense_queries = DenseQueries(["p3"], [8], 4, num_classes=1, num_queries=3, criterion=None)
    scores = torch.tensor([[0.5, 0.9, 0.8, 0.3]])
    boxes = torch.tensor([[[30.0, 30, 50, 50], [0, 0, 20, 20], [0, 0, 20, 19], [0, 0, 20, 10]]])
    features = torch.arange(4.0)[None, :, None].expand(1, 4, 4)
    dense = DensePredictions(scores[..., None], boxes, features, scores)
    chosen, _ = dense_queries.select(dense)
    assert torch.equal(chosen[0], boxes[0, [1, 0, 3]])
    dense_queries.num_queries = 4
    chosen, _ = dense_queries.select(dense)
    assert torch.equal(chosen[0], boxes[0, [1, 0, 3, 2]])


def test_boxes_reach_from_the_location_to_four_sides():
    dense_queries = DenseQueries(["p3"], [8], 4, num_classes=1, num_queries=3, criterion=None)
    dense = dense_queries({"p3": torch.zeros(1, 4, 4, 4)}, [(32, 32)])
    assert dense.boxes[0, 5].tolist() == [0, 0, 28, 28]  # around (12, 12), by two strides
    with torch.no_grad():
        dense_queries.distances.bias.copy_(torch.tensor([0.25, 0.5, 0.75, 1.0]).log())
    dense = dense_queries({"p3": torch.zeros(1, 4, 4, 4)}, [(32, 32)])
    assert_close(dense.boxes[0, 5], torch.tensor([8.0, 4, 24, 28]))


def test_gradients():
    """Boxes of proposals learn nothing from the stages, features do; everything that learns is reached."""
    model = detector().train()
    proposals, _ = propose(model)
    assert not proposals.boxes.requires_grad and proposals.features.requires_grad
    losses = model(training_batch())
    dense = [loss for name, loss in losses.items() if name.endswith("_dense")]
    assert len(dense) == 3
    sum(losses.values()).backward()
    for name, parameter in model.dense_queries.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    assert not [name for name in model.state_dict() if name.startswith("init_proposal")]


@torch.no_grad()
@pytest.mark.parametrize("levels", [[], ["p3", "p4", "p5"]])
def test_the_number_of_proposals_may_change_and_the_prepared_model_follows(levels):
    model = detector(DENSE_IN_FEATURES=levels).eval()
    torch.nn.init.normal_(model.dense_queries.class_logits.weight, std=0.1)
    prepared = prepare_for_inference(model)
    inputs = [{"image": image((64, 96))}]
    for count in (10, 4, 25):
        model.dense_queries.num_queries = prepared.model.dense_queries.num_queries = count
        proposals, _ = propose(model, ((64, 96),))
        assert proposals.boxes.shape[1] == count
        (ours,), (expected,) = prepared(inputs), model(inputs)
        assert_close(ours["instances"].scores, expected["instances"].scores, rtol=0, atol=1e-4)
        assert_close(ours["instances"].pred_boxes.tensor, expected["instances"].pred_boxes.tensor, rtol=0, atol=0.05)


def test_an_image_with_fewer_locations_than_proposals():
    model = detector(DENSE_IN_FEATURES=["p5"]).eval()
    assert propose(model, ((32, 64),))[0].boxes.shape == (1, 2, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"DENSE_IN_FEATURES": ["p6"]}, "DENSE_IN_FEATURES is 'p6'"), ({"USE_FOCAL": False}, "PROPOSALS dense needs")],
)
def test_mistakes(options, message):
    with pytest.raises(InputError, match=message):
        detector(**options)
