"""A model prepared for inference gives what the plain model gives."""

import copy
import io

import pytest
import torch
from detectron2.layers import Conv2d, get_norm
from detectron2.modeling import build_model
from detectron2.modeling.backbone.resnet import BasicBlock
from timm.layers import ConvNormAct
from torch import nn
from torch.testing import assert_close

from sparsercnn import prepare_for_inference
from sparsercnn.errors import InputError
from sparsercnn.fast.convolution import has_onednn
from sparsercnn.fast.fusion import fold_batch_norms
from sparsercnn.fast.inference import build_inference_model
from sparsercnn.fast.packed_linear import PackedLinear

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


@pytest.mark.parametrize("options", [{"MODEL.ROI_ROUTING.POOLER": "ROIPooler"}, {"MODEL.ROI_ROUTING.MODE": "soft"}])
@torch.no_grad()
def test_results_equal_with_other_routing(options):
    model = detector(**options)
    inputs = pictures((64, 96))
    assert_same_results(prepare_for_inference(model)(inputs), model(inputs))


@torch.no_grad()
def test_stages_equal_those_of_the_model():
    model = detector()
    inputs = pictures((64, 96))
    (ours,), (theirs,) = prepare_for_inference(model).predict_stages(inputs), model.predict_stages(inputs)
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
def test_first_stage_is_computed_again_when_its_weights_change():
    model = detector()
    prepared = prepare_for_inference(model)
    inputs = pictures((64, 96))
    prepared(inputs)
    for m in (model, prepared.model):
        m.init_proposal_features.weight.mul_(2).add_(0.1)
    assert_same_results(prepared(inputs), model(inputs))
    attention = model.head.head_series[0].self_attn.in_proj_weight
    attention.mul_(1.5)
    prepared.model.head.head_series[0].stage.self_attn.in_proj_weight.mul_(1.5)
    assert_same_results(prepared(inputs), model(inputs))


@torch.no_grad()
def test_bfloat16_is_close():
    model = detector()
    (stages,) = prepare_for_inference(model, torch.bfloat16).predict_stages(pictures((64, 96)))
    (expected,) = model.predict_stages(pictures((64, 96)))
    assert stages[-1].pred_boxes.tensor.dtype == stages[-1].scores.dtype == torch.float32
    assert (stages[-1].pred_boxes.tensor - expected[-1].pred_boxes.tensor).abs().max() < 2
    assert (stages[-1].scores - expected[-1].scores).abs().max() < 0.02


@pytest.mark.skipif(not has_onednn(torch.bfloat16), reason="needs a CPU that computes in bfloat16")
def test_the_stem_of_a_bfloat16_copy_rounds_only_its_result():
    model = detector()
    exact, rounding = (
        prepare_for_inference(model, dtype).model.backbone.bottom_up.stem for dtype in (torch.float32, torch.bfloat16)
    )
    x = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        expected = exact(x).bfloat16()
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(rounding(x), expected)


@pytest.mark.parametrize(
    ("norm", "all_sizes"), [("FrozenBN", [[(64, 96)], [(64, 64), (32, 64)]]), ("GN", [[(64, 96)]])]
)
@torch.no_grad()
def test_compiled_results_equal_those_of_the_model(norm, all_sizes):
    model = detector(norm)
    prepared = prepare_for_inference(model, compile=True)
    for sizes in all_sizes:
        assert_same_results(prepared(pictures(*sizes)), model(pictures(*sizes)))


@pytest.mark.skipif(not has_onednn(torch.float32), reason="needs oneDNN")
@pytest.mark.parametrize(("norm", "is_compiled"), [("FrozenBN", False), ("GN", True)])
def test_only_backbones_with_something_to_fuse_are_compiled(norm, is_compiled):
    prepared = prepare_for_inference(detector(norm), compile=True)
    assert (prepared.model.backbone._compiled_call_impl is not None) == is_compiled


def test_precision_comes_from_the_config():
    cfg = small_config()
    cfg.TEST.PRECISION = "bfloat16"
    assert build_inference_model(cfg, detector()).dtype == torch.bfloat16
    cfg.TEST.PRECISION = "half"
    with pytest.raises(InputError, match="TEST.PRECISION is 'half'; choose one of float32"):
        build_inference_model(cfg, detector())


class ConvAndNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, bias=False)
        self.bn = nn.BatchNorm2d(8)

    def forward(self, x):
        return self.bn(self.conv(x))


@pytest.mark.parametrize(
    "make",
    [
        ConvAndNorm,
        lambda: nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.SiLU()),
        lambda: Conv2d(4, 8, 3, norm=get_norm("BN", 8), activation=nn.functional.relu),
        lambda: nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.BatchNorm2d(8)),
        lambda: ConvNormAct(4, 8, 3),
        lambda: nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8, affine=False)),
        lambda: nn.Sequential(nn.Conv2d(4, 8, 3), nn.SyncBatchNorm(8).eval()),
    ],
    ids=["attributes", "sequential", "detectron2", "norm after another layer", "timm", "not affine", "synchronised"],
)
@torch.no_grad()
def test_folded_norms_change_nothing(make):
    torch.manual_seed(0)
    module = make()
    for norm in (m for m in module.modules() if hasattr(m, "running_var")):
        norm.running_mean.uniform_(-2, 2)
        norm.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 4, 9, 9)
    expected = module.eval()(x)
    fold_batch_norms(module)
    assert_close(module(x), expected, rtol=1e-4, atol=1e-5)


class Weighted(nn.Conv2d):
    """A convolution that does more, as weight standardisation does."""

    def forward(self, x):
        return super().forward(x) * 2


class PreActivation(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm2d(8)
        self.conv = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        return self.conv(self.bn(x).relu())


class Shared(nn.Module):
    """A convolution with a norm of its own for each level."""

    def __init__(self):
        super().__init__()
        conv = nn.Conv2d(8, 8, 1)
        self.levels = nn.ModuleList(nn.Sequential(conv, nn.BatchNorm2d(8)) for _ in range(2))

    def forward(self, x):
        return self.levels[0](x) + self.levels[1](x)


class Around(nn.Module):
    """A residual block whose input others read."""

    def __init__(self):
        super().__init__()
        self.before = nn.Conv2d(8, 8, 1)
        self.block = BasicBlock(8, 8, norm="BN")

    def forward(self, x):
        x = self.before(x)
        return x + self.block(x)


class Parallel(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(BasicBlock(8, 8, norm="BN") for _ in range(2))

    def forward(self, x):
        return self.blocks[0](x) + self.blocks[1](x)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(Weighted(8, 8, 3), nn.BatchNorm2d(8)),
        PreActivation,
        Shared,
        Around,
        Parallel,
        lambda: nn.Sequential(nn.Identity(), BasicBlock(8, 8, norm="BN")),
        lambda: nn.Sequential(*(BasicBlock(8, 8, norm="BN") for _ in range(3))),
        lambda: nn.Sequential(Conv2d(8, 8, 3, padding="same"), Conv2d(8, 8, 1)),
    ],
    ids=["subclass", "other order", "shared", "input read again", "in parallel", "first", "in a row", "string padding"],
)
@torch.no_grad()
def test_prepared_parts_give_the_same(make):
    torch.manual_seed(0)
    module = make().eval()
    for norm in (m for m in module.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 8, 9, 9)
    before, expected = x.clone(), module(x)
    assert_close(prepare_for_inference(module)(x), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(x, before)


@torch.no_grad()
def test_float16_runs_on_every_cpu():
    (stages,) = prepare_for_inference(detector(), torch.float16).predict_stages(pictures((64, 96)))
    assert stages[-1].pred_boxes.tensor.isfinite().all()


@torch.no_grad()
def test_cached_first_stage_notices_replaced_weights():
    model = detector()
    prepared = prepare_for_inference(model)
    prepared(pictures((64, 96)))
    changed = copy.deepcopy(model.head.head_series[0].state_dict())
    changed["norm1.weight"] *= 1.5
    model.head.head_series[0].load_state_dict(changed)
    prepared.model.head.head_series[0].stage.load_state_dict(changed, assign=True)
    assert_same_results(prepared(pictures((64, 96))), model(pictures((64, 96))))


def test_weights_of_a_copy_made_in_inference_mode_can_change():
    model, other = detector(), detector()
    for parameter in other.head.head_series[0].parameters():
        parameter.data.mul_(1.5)
    inputs = pictures((64, 96))
    with torch.inference_mode():
        prepared = prepare_for_inference(model)
        prepared(inputs)
        for m in (model.head.head_series[0], prepared.model.head.head_series[0].stage):
            m.load_state_dict(other.head.head_series[0].state_dict())
        assert_same_results(prepared(inputs), model(inputs))


def test_a_prepared_copy_stays_in_evaluation_mode_and_is_not_prepared_again():
    prepared = prepare_for_inference(detector())
    assert not any(module.training for module in prepared.train().modules())
    assert "instances" in prepared(pictures((64, 96)))[0]
    for again in (prepared, prepared.model):
        with pytest.raises(ValueError, match="prepared for inference already"):
            prepare_for_inference(again)


@torch.no_grad()
def test_preparation_is_a_switch():
    cfg = small_config()
    model = detector()
    cfg.TEST.PREPARE = False
    plain = build_inference_model(cfg, model.train())
    assert model.training and not plain.training
    found = plain(pictures((64, 96)))[0]["instances"]
    expected = model.eval()(pictures((64, 96)))[0]["instances"]
    assert torch.equal(found.scores, expected.scores)
    cfg.TEST.COMPILE = True
    with pytest.raises(InputError, match="TEST.PREPARE is False"):
        build_inference_model(cfg, model)


def test_linear_layers_are_packed_and_the_copy_can_be_copied_and_saved():
    prepared = prepare_for_inference(detector())
    interactions = [stage.inst_interact for stage in prepared.model.head.head_series[1:]]
    assert all(isinstance(i.out_layer, PackedLinear) for i in interactions)
    inputs = pictures((64, 96))
    assert_same_results(copy.deepcopy(prepared)(inputs), prepared(inputs), score=1e-6, pixel=1e-3)
    torch.save(prepared.state_dict(), io.BytesIO())
