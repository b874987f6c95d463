"""ResNet, FPN, their builders, and the registries that configs choose models from."""

import json
import re
from functools import partial
from pathlib import Path

import pytest
import torch
import torchvision
from detectron2.config import get_cfg
from detectron2.layers import CNNBlockBase, DeformConv, FrozenBatchNorm2d, ModulatedDeformConv, ShapeSpec
from detectron2.modeling import (
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    Backbone,
    build_backbone,
    build_model,
    build_proposal_generator,
    build_resnet_backbone,
)
from detectron2.modeling.backbone import FPN, BasicStem, ResNet
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7, build_retinanet_resnet_fpn_backbone
from detectron2.modeling.backbone.resnet import BasicBlock, BottleneckBlock, DeformBottleneckBlock
from torch import nn
from torch.nn import functional as F
from torchvision.models.feature_extraction import create_feature_extractor

GOLDEN = Path(__file__).parent.parent / "golden"


def resnet_cfg(depth: int = 18, **resnets):
    cfg = get_cfg()
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    if depth < 50:
        cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    for key, value in resnets.items():
        cfg.MODEL.RESNETS[key] = value
    return cfg


class TinyBottomUp(Backbone):
    """Three levels of strides 4, 8, 16 made by pooling, whose features are the image itself."""

    def __init__(self, strides=(4, 8, 16)):
        super().__init__()
        self._out_features = [f"res{i + 2}" for i in range(len(strides))]
        self._out_feature_strides = dict(zip(self._out_features, strides, strict=True))
        self._out_feature_channels = dict.fromkeys(self._out_features, 3)

    def forward(self, x):
        return {name: F.avg_pool2d(x, stride) for name, stride in self._out_feature_strides.items()}


@pytest.mark.parametrize("depth", [50, 101])
def test_state_dict_of_the_published_backbones(depth):
    cfg = resnet_cfg(depth, STRIDE_IN_1X1=False)
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    published = json.loads((GOLDEN / f"state_dict_r{depth}_100pro.json").read_text())
    expected = {k.removeprefix("backbone."): v for k, v in published.items() if k.startswith("backbone.")}
    assert {k: list(v.shape) for k, v in build_backbone(cfg).state_dict().items()} == expected


@pytest.mark.parametrize("depth, channels", [(18, [64, 128, 256, 512]), (50, [256, 512, 1024, 2048])])
def test_resnet_outputs_are_as_declared(depth, channels):
    net = build_resnet_backbone(resnet_cfg(depth, NORM="BN"), ShapeSpec(channels=3))
    shapes = net.output_shape()
    assert [(s.channels, s.stride) for s in shapes.values()] == list(zip(channels, [4, 8, 16, 32], strict=True))
    out = net(torch.randn(1, 3, 65, 64))  # an odd height rounds up
    assert list(out) == list(shapes)
    for name, feature in out.items():
        s = shapes[name]
        assert feature.shape == (1, s.channels, -(-65 // s.stride), 64 // s.stride)


def torchvision_name(name: str) -> str:
    """What torchvision calls a parameter of our ResNet."""
    name = name.removeprefix("stem.").replace("shortcut.norm", "downsample.1").replace("shortcut", "downsample.0")
    name = re.sub(r"^res(\d)", lambda m: f"layer{int(m[1]) - 1}", name)
    return re.sub(r"conv(\d)\.norm", r"bn\1", name)


@pytest.mark.parametrize("depth", [18, 50])
def test_resnet_equals_that_of_torchvision(depth):
    torch.manual_seed(0)
    cfg = resnet_cfg(depth, NORM="BN", STRIDE_IN_1X1=False)
    net = build_resnet_backbone(cfg, ShapeSpec(channels=3)).eval()
    reference = getattr(torchvision.models, f"resnet{depth}")(weights=None).eval()
    for module in reference.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.running_mean)
    weights = reference.state_dict()
    net.load_state_dict({name: weights[torchvision_name(name)] for name in net.state_dict()})
    features = {f"layer{i}": f"res{i + 1}" for i in range(1, 5)}
    expected = create_feature_extractor(reference, features)
    x = torch.randn(1, 3, 64, 96)
    torch.testing.assert_close(net(x), expected(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("depth, convs", [(18, 17), (34, 33), (50, 49), (101, 100), (152, 151)])
def test_resnet_depth_counts_convolutions(depth, convs):
    stages = ResNet.make_default_stages(depth, norm="")
    net = ResNet(BasicStem(norm=""), stages)
    weighted = [name for name, m in net.named_modules() if isinstance(m, nn.Conv2d) and "shortcut" not in name]
    assert len(weighted) == convs


def test_resnet_keeps_only_the_stages_that_are_asked_for():
    net = build_resnet_backbone(resnet_cfg(OUT_FEATURES=["stem", "res3"]), ShapeSpec(channels=1))
    assert [name for name, _ in net.named_children()] == ["stem", "res2", "res3"]
    assert list(net(torch.randn(1, 1, 32, 32))) == ["stem", "res3"]
    with pytest.raises(AssertionError, match="Available children"):
        build_resnet_backbone(resnet_cfg(OUT_FEATURES=["res9"]), ShapeSpec(channels=3))


@pytest.mark.parametrize("depth", [18, 50])
def test_traced_resnet_computes_the_same_at_another_size(depth):
    net = build_resnet_backbone(resnet_cfg(depth), ShapeSpec(channels=3)).eval()
    traced = torch.jit.trace(net, torch.randn(1, 3, 64, 32), strict=False, check_trace=False)
    x = torch.randn(2, 3, 32, 96)
    torch.testing.assert_close(traced(x), net(x))


msra = partial(nn.init.kaiming_normal_, mode="fan_out", nonlinearity="relu")
xavier = partial(nn.init.kaiming_uniform_, a=1)


def draw(fill, built: dict[str, nn.Conv2d], prefix: str = "") -> dict[str, torch.Tensor]:
    """Weights of convolutions, built in the order of the dict (which draws too) and then filled, a shortcut last."""
    for name in sorted(built, key=lambda name: name == "shortcut"):
        fill(built[name].weight)
    return {f"{prefix}{name}.weight": conv.weight for name, conv in built.items()}


def assert_weights_equal(net: nn.Module, expected: dict[str, torch.Tensor]) -> None:
    weights = {name: m.weight for name, m in net.named_modules() if isinstance(m, nn.Conv2d)}
    assert {f"{name}.weight" for name in weights} == set(expected)
    assert [name for name, weight in weights.items() if not torch.equal(weight, expected[f"{name}.weight"])] == []


def test_a_seed_draws_the_weights_of_official_detectron2():
    """Stem, then block by block, then FPN level by level; in each of them all convolutions are built, then filled."""
    cfg = resnet_cfg(18)
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    torch.manual_seed(0)
    net = build_backbone(cfg)

    conv = partial(nn.Conv2d, bias=False)
    torch.manual_seed(0)
    expected = draw(msra, {"conv1": conv(3, 64, 7)}, "bottom_up.stem.")
    channels = 64
    for stage, out in {"res2": 64, "res3": 128, "res4": 256, "res5": 512}.items():
        for i in range(2):
            built = {"shortcut": conv(channels, out, 1)} if channels != out else {}
            built |= {"conv1": conv(channels, out, 3), "conv2": conv(out, out, 3)}
            expected |= draw(msra, built, f"bottom_up.{stage}.{i}.")
            channels = out
    for level in range(2, 6):
        lateral = nn.Conv2d(64 * 2 ** (level - 2), 256, 1)
        expected |= draw(xavier, {f"fpn_lateral{level}": lateral, f"fpn_output{level}": nn.Conv2d(256, 256, 3)})
    assert_weights_equal(net, expected)


@pytest.mark.parametrize("in_channels", [8, 4])
def test_a_seed_draws_the_bottleneck_of_official_detectron2(in_channels):
    torch.manual_seed(0)
    block = BottleneckBlock(in_channels, 8, bottleneck_channels=2)
    conv = partial(nn.Conv2d, bias=False)
    torch.manual_seed(0)
    built = {"shortcut": conv(in_channels, 8, 1)} if in_channels != 8 else {}
    built |= {"conv1": conv(in_channels, 2, 1), "conv2": conv(2, 2, 3), "conv3": conv(2, 8, 1)}
    assert_weights_equal(block, draw(msra, built))


def test_resnet_classifier():
    net = ResNet(BasicStem(norm="BN"), ResNet.make_default_stages(18, norm="BN"), num_classes=7)
    assert net(torch.randn(2, 3, 32, 32))["linear"].shape == (2, 7)


@pytest.mark.parametrize("freeze_at", [0, 1, 2, 3])
def test_freezing_from_the_bottom(freeze_at):
    frozen = ["stem", "res2", "res3"][:freeze_at]
    cfg = resnet_cfg(NORM="BN")
    cfg.MODEL.BACKBONE.FREEZE_AT = freeze_at
    net = build_resnet_backbone(cfg, ShapeSpec(channels=3))
    for name, child in net.named_children():
        assert all(p.requires_grad == (name not in frozen) for p in child.parameters())
        is_frozen_norm = [isinstance(m, FrozenBatchNorm2d) for n, m in child.named_modules() if n.endswith("norm")]
        assert all(f == (name in frozen) for f in is_frozen_norm)


def test_resnet_trains_with_frozen_batch_norm_below_and_gradients_above():
    net = build_resnet_backbone(resnet_cfg(), ShapeSpec(channels=3)).train()
    net(torch.randn(1, 3, 64, 64))["res5"].mean().backward()
    for name, p in net.named_parameters():
        assert (p.grad is not None) == (not name.startswith(("stem", "res2"))), name


def test_bottleneck_is_three_convolutions_and_a_shortcut():
    torch.manual_seed(0)
    block = BottleneckBlock(4, 8, bottleneck_channels=2, stride=2, norm="", stride_in_1x1=True)
    x = torch.randn(1, 4, 6, 6)
    y = F.relu(F.conv2d(x, block.conv1.weight, stride=2))
    y = F.relu(F.conv2d(y, block.conv2.weight, padding=1))
    y = F.conv2d(y, block.conv3.weight) + F.conv2d(x, block.shortcut.weight, stride=2)
    torch.testing.assert_close(block(x), F.relu(y))
    assert block.shortcut.bias is None
    assert BottleneckBlock(4, 8, bottleneck_channels=2, stride=2).conv2.stride == (2, 2)


def test_make_stage_per_block_arguments():
    blocks = ResNet.make_stage(BasicBlock, 2, stride_per_block=[2, 1], in_channels=4, out_channels=8, norm="")
    assert [(b.in_channels, b.out_channels, b.stride) for b in blocks] == [(4, 8, 2), (8, 8, 1)]
    with pytest.raises(AssertionError, match="same length as num_blocks"):
        ResNet.make_stage(BasicBlock, 3, stride_per_block=[2, 1], in_channels=4, out_channels=8)
    with pytest.raises(AssertionError, match="both stride"):
        ResNet.make_stage(BasicBlock, 2, stride_per_block=[2, 1], stride=1, in_channels=4, out_channels=8)


@pytest.mark.parametrize("modulated, conv_class, channels", [(False, DeformConv, 18), (True, ModulatedDeformConv, 27)])
def test_deformable_stages(modulated, conv_class, channels):
    cfg = resnet_cfg(50, DEFORM_ON_PER_STAGE=[False, False, False, True], DEFORM_MODULATED=modulated, WIDTH_PER_GROUP=8)
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 32
    net = build_resnet_backbone(cfg, ShapeSpec(channels=3))
    assert all(type(block) is BottleneckBlock for block in net.res4)
    assert all(type(block) is DeformBottleneckBlock for block in net.res5)
    block = net.res5[0]
    assert isinstance(block.conv2, conv_class) and block.conv2_offset.out_channels == channels
    assert not block.conv2_offset.weight.any() and not block.conv2_offset.bias.any()
    x = torch.randn(1, 3, 64, 64)
    try:
        assert net(x)["res5"].shape == (1, 256, 2, 2)
    except NotImplementedError as e:
        pytest.skip(f"this detectron2 has no CPU kernel: {e}")


def test_dilated_res5_keeps_the_stride():
    net = build_resnet_backbone(resnet_cfg(50, RES5_DILATION=2, WIDTH_PER_GROUP=8), ShapeSpec(channels=3))
    assert net.output_shape()["res5"].stride == 16
    assert net.res5[1].conv2.dilation == (2, 2)


@pytest.mark.parametrize(
    "resnets, key",
    [
        ({"RES2_OUT_CHANNELS": 256}, "RES2_OUT_CHANNELS"),
        ({"DEFORM_ON_PER_STAGE": [False, False, False, True]}, "DEFORM_ON_PER_STAGE"),
        ({"RES5_DILATION": 2}, "RES5_DILATION"),
        ({"NUM_GROUPS": 2}, "NUM_GROUPS"),
    ],
)
def test_basic_blocks_refuse_bottleneck_options(resnets, key):
    with pytest.raises(AssertionError, match=key):
        build_resnet_backbone(resnet_cfg(18, **resnets), ShapeSpec(channels=3))


@pytest.mark.parametrize("fuse_type, share", [("sum", 1.0), ("avg", 0.5)])
def test_fpn_arithmetic(fuse_type, share):
    torch.manual_seed(0)
    fpn = FPN(TinyBottomUp(), ["res2", "res3", "res4"], 5, fuse_type=fuse_type)
    x = torch.randn(2, 3, 32, 48)
    c = fpn.bottom_up(x)
    m4 = fpn.fpn_lateral4(c["res4"])
    m3 = (fpn.fpn_lateral3(c["res3"]) + F.interpolate(m4, scale_factor=2)) * share
    m2 = (fpn.fpn_lateral2(c["res2"]) + F.interpolate(m3, scale_factor=2)) * share
    out = fpn(x)
    assert list(out) == ["p2", "p3", "p4"]
    for name, m in zip(out, (m2, m3, m4), strict=True):
        conv = getattr(fpn, f"fpn_output{name[1]}")
        torch.testing.assert_close(out[name], F.conv2d(m, conv.weight, conv.bias, padding=1))


def test_fpn_declares_what_it_returns():
    fpn = FPN(TinyBottomUp(), ["res3", "res4"], 5, norm="BN", square_pad=64)
    assert fpn.output_shape() == {"p3": ShapeSpec(channels=5, stride=8), "p4": ShapeSpec(channels=5, stride=16)}
    assert fpn.size_divisibility == 16
    assert fpn.padding_constraints == {"square_size": 64}
    assert fpn.fpn_lateral3.bias is None and isinstance(fpn.fpn_lateral3.norm, nn.BatchNorm2d)
    assert (TinyBottomUp().size_divisibility, TinyBottomUp().padding_constraints) == (0, {})


def test_fpn_refuses_strides_that_do_not_double():
    with pytest.raises(AssertionError, match="not log2 contiguous"):
        FPN(TinyBottomUp((4, 16, 32)), ["res2", "res3", "res4"], 5)


def test_last_level_max_pool_takes_every_second_pixel():
    p5 = torch.randn(1, 2, 5, 6)
    (p6,) = LastLevelMaxPool()(p5)
    assert torch.equal(p6, p5[:, :, ::2, ::2])


def test_retinanet_fpn_adds_p6_and_p7_from_res5():
    cfg = resnet_cfg()
    cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 8
    fpn = build_retinanet_resnet_fpn_backbone(cfg, ShapeSpec(channels=3))
    assert isinstance(fpn.top_block, LastLevelP6P7) and fpn.top_block.p6.in_channels == 512
    x = torch.randn(1, 3, 128, 64)
    out = fpn(x)
    assert {name: tuple(f.shape[2:]) for name, f in out.items()} == {
        name: (128 // s.stride, 64 // s.stride if s.stride <= 64 else 1) for name, s in fpn.output_shape().items()
    }
    p6 = fpn.top_block.p6(fpn.bottom_up(x)["res5"])
    torch.testing.assert_close(out["p7"], fpn.top_block.p7(F.relu(p6)))


def test_registered_backbone_and_model_are_built_by_name():
    class NamedBackbone(TinyBottomUp):
        def __init__(self, cfg, input_shape):
            super().__init__()
            self.input_shape = input_shape

    class NamedModel(nn.Module):
        def __init__(self, cfg):
            super().__init__()
            self.backbone = build_backbone(cfg)
            self.weight = nn.Parameter(torch.zeros(1))

    BACKBONE_REGISTRY.register(NamedBackbone)
    META_ARCH_REGISTRY.register(NamedModel)
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = "NamedBackbone"
    cfg.MODEL.META_ARCHITECTURE = "NamedModel"
    model = build_model(cfg)
    assert type(model) is NamedModel
    assert model.backbone.input_shape == ShapeSpec(channels=3)


def test_unknown_names_are_reported():
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "NoSuchModel"
    with pytest.raises(KeyError, match="NoSuchModel"):
        build_model(cfg)
    with pytest.raises(KeyError, match="PROPOSAL_GENERATOR"):
        PROPOSAL_GENERATOR_REGISTRY.get("NoSuchGenerator")
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "PrecomputedProposals"
    assert build_proposal_generator(cfg, {}) is None


def test_backbones_are_abstract():
    with pytest.raises(TypeError):
        Backbone()
    assert issubclass(BasicStem, CNNBlockBase) and BasicStem().stride == 4
