"""The meta-architecture: what goes in and comes out, on any backbone, and what it says about a wrong config."""

import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY

from efficientdet import EfficientDet, EfficientDetConfigError
from sparsercnn import prepare_for_inference
from sparsercnn.engine import build_model
from sparsercnn.errors import InputError

from .models import image, small_config, small_model, training_batch


def test_it_is_registered():
    assert META_ARCH_REGISTRY.get("EfficientDet") is EfficientDet


def test_it_learns():
    model = small_model().train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    totals = []
    for _ in range(12):
        losses = model(training_batch())
        assert losses.keys() == {"loss_cls", "loss_box_reg"}
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        totals.append(sum(losses.values()).item())
    assert totals[-1] < 0.7 * totals[0]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@torch.no_grad()
def test_detections_are_in_the_size_that_is_asked_for():
    model = small_model("TEST.DETECTIONS_PER_IMAGE", 40)
    inputs = [{"image": image((70, 90)), "height": 140, "width": 180}, {"image": image((64, 96), 1)}]
    large, plain = (result["instances"] for result in model(inputs))
    assert large.image_size == (140, 180) and plain.image_size == (64, 96)
    for found in (large, plain):
        assert 0 < len(found) <= 40
        height, width = found.image_size
        boxes = found.pred_boxes.tensor
        assert (boxes >= 0).all() and (boxes <= torch.tensor([width, height, width, height])).all()
        assert (found.scores.diff() <= 0).all() and set(found.pred_classes.tolist()) <= {0, 1, 2}
    (half,) = model([{"image": image((70, 90))}])
    torch.testing.assert_close(half["instances"].pred_boxes.tensor * 2, large.pred_boxes.tensor)


@torch.no_grad()
def test_an_image_is_padded_to_whole_cells_of_every_level():
    model = small_model("MODEL.NECK.NUM_LEVELS", 5, "MODEL.EFFICIENTDET.IN_FEATURES", ["p2", "p6"])
    images = model.preprocess_image([{"image": image((65, 60))}, {"image": image((40, 100))}])
    assert images.tensor.shape == (2, 3, 128, 128) and images.image_sizes == [(65, 60), (40, 100)]
    assert (images.tensor[0, :, 65:] == 0).all()
    anchors, logits, _ = model.predict(model.backbone(images.tensor))
    assert [len(a) for a in anchors] == [x.shape[1] for x in logits] == [32 * 32 * 9, 2 * 2 * 9]


@torch.no_grad()
@pytest.mark.parametrize("nms", ["hard", "soft"])
def test_candidates_are_the_best_pairs_of_anchor_and_class(nms):
    model = small_model("MODEL.EFFICIENTDET.NMS", nms, "MODEL.EFFICIENTDET.TOPK_CANDIDATES", 2)
    anchors = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40], [50, 50, 60, 60]])
    logits = torch.tensor([[0.0, -9, 2], [-9, 3, -9], [-9, -9, 1]])
    found = model.select((64, 64), anchors, logits, torch.zeros(3, 4))
    assert found.pred_classes.tolist() == [1, 2]
    assert found.scores.tolist() == pytest.approx(torch.tensor([3.0, 2.0]).sigmoid().tolist())
    assert found.pred_boxes.tensor.tolist() == [[20, 20, 40, 40], [0, 0, 10, 10]]


@torch.no_grad()
def test_prepared_for_inference_it_finds_the_same():
    model = small_model()
    torch.nn.init.normal_(model.head.class_logits.pointwise.weight)
    inputs = [{"image": image((64, 96))}]
    (plain,), (prepared,) = model(inputs), prepare_for_inference(model)(inputs)
    torch.testing.assert_close(prepared["instances"].scores, plain["instances"].scores, rtol=0, atol=1e-4)
    boxes = (result["instances"].pred_boxes.tensor for result in (prepared, plain))
    torch.testing.assert_close(*boxes, rtol=0, atol=0.05)


def test_an_auxiliary_pyramid_is_supervised_in_training():
    model = small_model("MODEL.NECK.NAME", "AugFPN").train()
    losses = model(training_batch())
    assert losses.keys() == {"loss_cls", "loss_box_reg", "loss_cls_lateral", "loss_box_reg_lateral"}
    assert 0 < losses["loss_cls_lateral"] < losses["loss_cls"]


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("NUM_CLASSES", 0, "is 0; it must be at least 1"),
        ("DEPTH", -1, "is -1; it must be at least 0"),
        ("ANCHOR_SCALE", 0.0, "is 0.0; it must be more than 0"),
        ("PRIOR_PROB", 1.0, "is 1.0; it must be between 0 and 1"),
        ("NMS", "gentle", "is 'gentle'; it must be hard or soft"),
        ("NORM", "BM", "is 'BM', for levels of 16 channels; it must be one of BN"),
        ("NORM", "GN", "is 'GN', for levels of 16 channels; it must be one of BN"),
        ("IN_FEATURES", ["p2", "p9"], "asks for p9, but build_neck_backbone makes p2, p3, p4"),
        ("IN_FEATURES", [], "asks for nothing"),
    ],
)
def test_what_makes_no_model_is_refused_by_its_key(key, value, message):
    cfg = small_config(f"MODEL.EFFICIENTDET.{key}", value)
    with pytest.raises(EfficientDetConfigError, match=f"^MODEL.EFFICIENTDET.{key} ") as raised:
        EfficientDet(cfg)
    assert message in str(raised.value)
    with pytest.raises(InputError):
        build_model(cfg)
