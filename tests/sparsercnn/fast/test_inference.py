"""A model prepared for inference gives what the plain model gives."""

import copy
import io

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn
from torch.testing import assert_close

from sparsercnn import prepare_for_inference
from sparsercnn.fast.convolution import FastConv2d
from sparsercnn.fast.inference import Parts, prepare_parts
from sparsercnn.fast.processor import has_onednn
from sparsercnn.fast.training import prepare_for_training
from sparsercnn.visualization.stages import predict_stages

from ..models import image, small_config


def detector(norm: str = "FrozenBN", depth: int = 18, **options):
    """A detector whose boxes move as little per stage, and whose norms do as much, as after training."""
    torch.manual_seed(0)
    cfg = small_config()
    cfg.MODEL.RESNETS.NORM = norm
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64 if depth < 50 else 256
    cfg.merge_from_list([x for item in options.items() for x in item])
    model = build_model(cfg).eval()
    for stage in model.head.head_series:
        nn.init.normal_(stage.bboxes_delta.weight, std=0.02)
    for module in model.modules():
        if hasattr(module, "running_var"):
            for name, low, high in (("weight", 0.5, 1.0), ("bias", -0.2, 0.2), ("running_mean", -0.2, 0.2)):
                nn.init.uniform_(getattr(module, name), low, high)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model


def pictures(*sizes):
    return [{"image": image(size, seed=i), "height": 2 * size[0], "width": 2 * size[1]} for i, size in enumerate(sizes)]


def assert_same_results(ours, theirs, score=1e-4, pixel=0.05):
    for a, b in zip(ours, theirs, strict=True):
        a, b = a["instances"], b["instances"]
        assert a.image_size == b.image_size and len(a) == len(b)
        assert_close(a.scores, b.scores, rtol=0, atol=score)
        assert_close(a.pred_boxes.tensor, b.pred_boxes.tensor, rtol=0, atol=pixel)
        assert torch.equal(a.pred_classes, b.pred_classes)


@pytest.mark.parametrize("norm", ["FrozenBN", "BN", "GN"])
@pytest.mark.parametrize("depth", [18, 50])
@torch.no_grad()
def test_results_equal_those_of_the_model(norm, depth):
    model = detector(norm, depth)
    inputs = pictures((64, 96), (80, 64))
    assert_same_results(prepare_for_inference(model)(inputs), model(inputs))


@pytest.mark.parametrize(
    "options",
    [
        {"MODEL.ROI_ROUTING.POOLER": "ROIPooler"},
        {"MODEL.ROI_ROUTING.MODE": "soft"},
        {"MODEL.ROI_ROUTING.MODE": "adaptive"},
    ],
    ids=str,
)
@torch.no_grad()
def test_results_equal_with_other_routing(options):
    model = detector(**options)
    inputs = pictures((64, 96))
    assert_same_results(prepare_for_inference(model)(inputs), model(inputs))


@pytest.mark.parametrize("part", Parts.__dataclass_fields__)
@torch.no_grad()
def test_results_equal_without_each_part(part):
    model = detector(**{"MODEL.FPN.OUT_CHANNELS": 128, "MODEL.SparseRCNN.HIDDEN_DIM": 128})
    inputs = pictures((64, 96))
    prepared = prepare_parts(model, torch.float32, compile=False, parts=Parts(**{part: False}))
    assert_same_results(prepared(inputs), model(inputs))


@torch.no_grad()
def test_a_model_prepared_for_training_gives_the_same():
    model = detector()
    inputs = pictures((64, 96))
    expected = model(inputs)
    prepare_for_training(model)
    assert_same_results(prepare_for_inference(model)(inputs), expected)


@torch.no_grad()
def test_stages_equal_those_of_the_model():
    model = detector()
    inputs = pictures((64, 96))
    (ours,), (theirs,) = prepare_for_inference(model).run(predict_stages, inputs), predict_stages(model, inputs)
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a.pred_boxes.tensor, b.pred_boxes.tensor, rtol=0, atol=0.05)


def test_the_model_itself_stays_as_it_is():
    model = detector("BN").train()
    before = copy.deepcopy(model.state_dict())
    names = [name for name, _ in model.named_modules()]
    prepare_for_inference(model, torch.bfloat16)(pictures((64, 96)))
    assert model.training and names == [name for name, _ in model.named_modules()]
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@torch.no_grad()
def test_bfloat16_is_close():
    model = detector()
    (stages,) = prepare_for_inference(model, torch.bfloat16).run(predict_stages, pictures((64, 96)))
    (expected,) = predict_stages(model, pictures((64, 96)))
    assert stages[-1].pred_boxes.tensor.dtype == stages[-1].scores.dtype == torch.float32
    assert (stages[-1].pred_boxes.tensor - expected[-1].pred_boxes.tensor).abs().max() < 2
    assert (stages[-1].scores - expected[-1].scores).abs().max() < 0.02


@pytest.mark.skipif(not has_onednn(torch.bfloat16), reason="needs a CPU that computes in bfloat16")
def test_what_stays_float32_in_a_bfloat16_copy():
    model = prepare_for_inference(detector(), torch.bfloat16).model
    convolutions = [module for module in model.backbone.modules() if isinstance(module, FastConv2d)]
    image_reader = [conv for conv in convolutions if conv.dtype == torch.float32]
    assert len(image_reader) == 1 and image_reader[0].geometry[1] == (2, 2) and len(image_reader[0].bias) == 64
    assert all(conv.output_dtype == torch.bfloat16 for conv in convolutions)
    for stage in model.head.head_series:
        assert stage.linear1.dtype == stage.linear2.dtype == torch.float32
        assert stage.class_logits.weight.dtype == stage.reg_module[0].weight.dtype == torch.float32
        assert stage.inst_interact.out_layer.dtype == stage.self_attn.out_proj.weight.dtype == torch.bfloat16


@torch.no_grad()
def test_compiling_is_for_gpus():
    model = detector()
    prepared = prepare_for_inference(model, compile=True)
    assert all(module._compiled_call_impl is None for module in prepared.modules())
    assert_same_results(prepared(pictures((64, 96))), model(pictures((64, 96))))


@torch.no_grad()
def test_float16_runs_on_every_cpu():
    (stages,) = prepare_for_inference(detector(), torch.float16).run(predict_stages, pictures((64, 96)))
    assert stages[-1].pred_boxes.tensor.isfinite().all()


def test_a_prepared_copy_stays_in_evaluation_mode_and_is_not_prepared_again():
    prepared = prepare_for_inference(detector())
    assert not any(module.training for module in prepared.train().modules())
    assert "instances" in prepared(pictures((64, 96)))[0]
    for again in (prepared, prepared.model):
        with pytest.raises(ValueError, match="prepared for inference already"):
            prepare_for_inference(again)


@pytest.mark.skipif(not has_onednn(torch.float32), reason="needs oneDNN")
def test_the_copy_can_be_copied_and_saved():
    prepared = prepare_for_inference(detector())
    inputs = pictures((64, 96))
    assert_same_results(copy.deepcopy(prepared)(inputs), prepared(inputs), score=1e-6, pixel=1e-3)
    torch.save(prepared.state_dict(), io.BytesIO())
