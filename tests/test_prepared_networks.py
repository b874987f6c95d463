"""Every neck, detectron2's own backbone and timm's networks are prepared for inference as far as they can be."""

from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import Conv2d
from detectron2.modeling import build_backbone, build_model
from detectron2.structures import ImageList
from torch import nn
from torch.testing import assert_close

from necks import add_neck_config
from sparsercnn import add_sparsercnn_config, prepare_for_inference
from sparsercnn.fast.convolution import FastConv2d
from sparsercnn.fast.processor import has_onednn
from sparsercnn.fast.tracing import TracedBackbone
from sparsercnn.visualization.stages import predict_stages

from .sparsercnn.fast.graphs import calls_of, fused_calls, missed

CONFIGS = Path(__file__).parents[1] / "configs"
NECKS = sorted(path.stem for path in (CONFIGS / "necks").glob("[!B]*.yaml"))
TINY = """
MODEL.WEIGHTS "" MODEL.DEVICE cpu MODEL.BACKBONE.FREEZE_AT 0 MODEL.RESNETS.DEPTH 18 MODEL.RESNETS.RES2_OUT_CHANNELS 64
MODEL.TIMM.PRETRAINED False MODEL.NECK.OUT_CHANNELS 64 MODEL.FPN.OUT_CHANNELS 64 MODEL.NECK.NASFPN.STACK 2
MODEL.SparseRCNN.HIDDEN_DIM 64 MODEL.SparseRCNN.DIM_FEEDFORWARD 64 MODEL.SparseRCNN.DIM_DYNAMIC 8
MODEL.SparseRCNN.NUM_HEADS 2 MODEL.SparseRCNN.NUM_PROPOSALS 10 MODEL.SparseRCNN.NUM_CLASSES 3
"""
needs_onednn = pytest.mark.skipif(not has_onednn(torch.float32), reason="needs oneDNN")


def config(name: str, *options: object) -> CfgNode:
    cfg = get_cfg()
    add_sparsercnn_config(cfg)
    add_neck_config(cfg)
    cfg.merge_from_file(str(CONFIGS / name))
    cfg.merge_from_list([*TINY.split(), *options])
    return cfg


def as_trained(model: nn.Module) -> nn.Module:
    """The model in evaluation mode, with norms and proposals of many kinds and small steps, as after training."""
    for module in model.modules():
        if getattr(module, "running_var", None) is not None:
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.uniform_(module.bias, -0.2, 0.2)
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    if hasattr(model, "head"):
        for stage in model.head.head_series:
            nn.init.normal_(stage.bboxes_delta.weight, std=0.02)
        centers, sizes = torch.rand(len(model.init_proposal_boxes.weight), 2), torch.logspace(-1.3, 0, 10)[:, None]
        model.init_proposal_boxes.weight.data = torch.cat([centers, sizes, sizes], dim=1)
    return model.eval()


def build(name: str, *options: object) -> nn.Module:
    torch.manual_seed(0)
    return as_trained(build_model(config(name, *options)))


def images() -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    sizes = ((96, 128), (70, 150))
    return [{"image": torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8)} for size in sizes]


def count(model: nn.Module, *kinds: type[nn.Module]) -> int:
    return sum(isinstance(module, kinds) for module in model.modules())


@torch.no_grad()
def assert_same_results(prepared: nn.Module, model: nn.Module) -> None:
    for ours, theirs in zip(prepared.run(predict_stages, images()), predict_stages(model, images()), strict=True):
        assert_close(ours[-1].scores, theirs[-1].scores, rtol=0, atol=1e-4)
        assert_close(ours[-1].pred_boxes.tensor, theirs[-1].pred_boxes.tensor, rtol=0, atol=0.05)


@pytest.mark.parametrize("name", NECKS)
def test_results_equal_those_of_the_model(name):
    model = build(f"necks/{name}.yaml")
    assert_same_results(prepare_for_inference(model), model)


@needs_onednn
@pytest.mark.parametrize("name", NECKS)
def test_whatever_can_be_converted_is(name):
    model = build(f"necks/{name}.yaml")
    prepared = prepare_for_inference(model).model
    assert isinstance(prepared.backbone, TracedBackbone)
    calls = calls_of(prepared.backbone)
    assert count(prepared.backbone, FastConv2d) == count(model.backbone, nn.Conv2d)
    assert calls["Conv2d"] == calls["conv2d"] == calls["batch_norm"] == 0
    assert not missed(prepared.backbone)


# A ResNet-18 has a stem with a ReLU, and 8 residual blocks of two convolutions, each with a ReLU, the second with an
# addition. Recursive FPN runs it twice; the second time three of the blocks have one term more before the ReLU.
RESNET = {("relu", False): 9, ("relu", True): 8}
NECK_CALLS = {
    "fpn": {(None, True): 3},
    "panet": {("relu", False): 6, (None, True): 6},
    "augfpn": {("relu", False): 1, ("sigmoid", False): 1, (None, True): 4},
    "ssd": {},
    "sa": {("gelu", False): 7},
    "sa_sum": {("gelu", False): 14},
    "sa_rcnn": {(None, True): 3},
    "ihp": {("gelu", False): 4},
    "bifpn": {},
    "nasfpn": {},
    "rfp": {("relu", False): 9, ("relu", True): 5, (None, True): 9, ("sigmoid", False): 4},
}


@needs_onednn
@pytest.mark.parametrize("name", NECK_CALLS)
def test_convolutions_take_over_additions_and_activations(name):
    calls = fused_calls(prepare_for_inference(build(f"necks/{name}.yaml")).model.backbone)
    expected = dict(RESNET)
    for kind, number in NECK_CALLS[name].items():
        expected[kind] = expected.get(kind, 0) + number
    assert {kind: number for kind, number in calls.items() if kind != (None, False)} == expected


@needs_onednn
def test_batch_norms_of_necks_are_folded():
    prepared = prepare_for_inference(build("necks/sa.yaml", "MODEL.NECK.NORM", "BN")).model
    calls = calls_of(prepared.backbone)
    assert calls["batch_norm"] == calls["silu"] == 0


@needs_onednn
@pytest.mark.parametrize("depth", [18, 50])
def test_detectron2s_own_backbone(depth):
    options = ["MODEL.RESNETS.DEPTH", depth, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64 if depth == 18 else 256]
    model = build("sparsercnn.res50.300pro.3x.yaml", *options)
    prepared = prepare_for_inference(model)
    assert_same_results(prepared, model)
    assert count(prepared.model.backbone, FastConv2d) == count(model.backbone, nn.Conv2d)
    assert not missed(prepared.model.backbone)
    blocks, inner = {18: (8, 9), 50: (16, 33)}[depth]
    calls = fused_calls(prepared.model.backbone)
    assert calls["relu", False] == inner and calls["relu", True] == blocks and calls[None, True] == 3


TIMM = ["efficientnet_b0", "resnet18", "mobilenetv3_large_100", "convnext_atto", "regnety_002"]


@needs_onednn
@pytest.mark.parametrize("name", TIMM)
@torch.no_grad()
def test_networks_of_timm_alone(name):
    torch.manual_seed(0)
    cfg = config("necks/fpn.yaml", "MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", name)
    network = as_trained(build_backbone(cfg))
    prepared, x = prepare_for_inference(network), torch.randn(1, 3, 64, 96)
    expected, found = network(x), prepared(x)
    assert list(found) == list(expected)
    for level in found:
        assert_close(found[level], expected[level], rtol=1e-3, atol=1e-3 * expected[level].abs().max().item())
    assert count(prepared, FastConv2d) == count(network, nn.Conv2d)
    assert calls_of(prepared)["batch_norm"] == 0 and not missed(prepared)


class Detector(nn.Module):
    """As detectron2's models are: a backbone, and a head that is applied to every level of every image."""

    def __init__(self):
        super().__init__()
        cfg = config("sparsercnn.res50.300pro.3x.yaml")
        self.backbone = build_backbone(cfg)
        self.tower = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.GroupNorm(4, 64), nn.ReLU())
        self.score = Conv2d(64, 3, 1, activation=torch.sigmoid)

    def forward(self, batched_inputs):
        images = ImageList.from_tensors([x["image"].float() for x in batched_inputs], self.backbone.size_divisibility)
        levels = self.backbone(images.tensor).values()
        scores = [self.score(self.tower(level)).flatten(1) for level in levels]
        return [{"scores": image} for image in torch.cat(scores, dim=1)]


@torch.no_grad()
def test_any_detector():
    torch.manual_seed(0)
    model = as_trained(Detector())
    prepared = prepare_for_inference(model)
    for ours, theirs in zip(prepared(images()), model(images()), strict=True):
        assert_close(ours["scores"], theirs["scores"], rtol=0, atol=1e-4)
    if has_onednn(torch.float32):
        assert count(prepared, FastConv2d) == count(model, nn.Conv2d)
        assert fused_calls(prepared)["sigmoid", False] == 1
