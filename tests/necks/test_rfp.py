"""The recursive pyramid on a small ResNet, of both kinds of blocks."""

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock, DeformBottleneckBlock, ResNet

from necks import FPN, RFP, NeckConfigError
from necks.rfp import ASPP, add_before_relu, look_again

from . import plain

LEVELS = ["res2", "res3", "res4", "res5"]
BLOCKS = {"basic": (BasicBlock, {}), "bottleneck": (BottleneckBlock, {"bottleneck_channels": 6})}


def resnet(block=BasicBlock, **options) -> ResNet:
    stages, channels = [], 8
    for first_stride, out_channels in ((1, 8), (2, 12), (2, 16), (2, 20)):
        strides = [first_stride, 1]
        shape = {"in_channels": channels, "out_channels": out_channels, "norm": "BN"}
        stages.append(ResNet.make_stage(block, 2, stride_per_block=strides, **shape, **options))
        channels = out_channels
    return ResNet(BasicStem(3, 8, norm="BN"), stages, out_features=LEVELS)


@pytest.fixture(params=[False, True], ids=["own", "shared"])
def parts(request):
    """A ResNet, RFP on it, the backbone of the two, and an image of odd size."""
    torch.manual_seed(0)
    bottom_up = resnet()
    neck = RFP(bottom_up.output_shape(), out_channels=10, shared=request.param)
    backbone = neck.wrap(bottom_up).eval()
    return bottom_up, neck, backbone, torch.randn(2, 3, 75, 97)


def randomize(neck: RFP) -> None:
    for parameter in [*neck.feedback.parameters(), *neck.gate.parameters()]:
        torch.nn.init.normal_(parameter, std=0.5)


def test_zero_feedback_equals_plain_fpn(parts):
    bottom_up, neck, backbone, images = parts
    fpn = FPN(bottom_up.output_shape(), out_channels=10)
    fpn.load_state_dict(neck.fpn.state_dict())
    expected = fpn(bottom_up(images))
    got = backbone(images)
    assert list(got) == ["p2", "p3", "p4", "p5"]
    for name in expected:
        torch.testing.assert_close(neck(bottom_up(images))[name], expected[name], rtol=0, atol=0)
        # Without feedback both steps see the same, so the gate has nothing to choose.
        torch.testing.assert_close(got[name], expected[name])


@pytest.mark.parametrize("size", [(64, 96), (75, 97)], ids=["even", "odd"])
@pytest.mark.parametrize("block", BLOCKS)
def test_formula(block, size):
    torch.manual_seed(0)
    block_class, options = BLOCKS[block]
    bottom_up = resnet(block_class, **options)
    neck = RFP(bottom_up.output_shape(), out_channels=8)
    backbone = plain.randomize(neck.wrap(bottom_up)).eval()
    (later,) = backbone.later
    images = torch.randn(2, 3, *size)
    before = neck.fpn(bottom_up(images))

    x = later.first_layers(images)
    features = {}
    for name, stage in zip(LEVELS, later.stages, strict=True):
        first, second = stage
        feedback = 0
        if name != "res2":
            seen = aspp(neck.aspp, before[name.replace("res", "p")])
            feedback = plain.conv(neck.feedback[name], seen)
        shortcut = x if first.shortcut is None else first.shortcut(x)
        out = first.conv1(x).clamp(min=0)
        if block == "bottleneck":
            out = first.conv3(first.conv2(out).clamp(min=0))
        else:
            out = first.conv2(out)
        x = second((out + shortcut + feedback).clamp(min=0))
        features[name] = x
    after = neck.fpn(features)
    for name, got in backbone(images).items():
        gate = plain.sigmoid(plain.conv(neck.gate, after[name]))
        torch.testing.assert_close(got, gate * after[name] + (1 - gate) * before[name], rtol=1e-5, atol=1e-5)


def aspp(module, x):
    point = plain.conv(module.point, x)
    dilated = [
        torch.nn.functional.conv2d(x, layer.weight, layer.bias, padding=d, dilation=d)
        for layer, d in zip(module.dilated, (3, 6), strict=True)
    ]
    context = plain.conv(module.context, x.mean((-2, -1), keepdim=True)).expand(-1, -1, *x.shape[-2:])
    return torch.cat([point, *dilated, context], dim=1).clamp(min=0)


@pytest.mark.parametrize("block", BLOCKS)
def test_without_feedback_a_block_is_its_own(block):
    block_class, options = BLOCKS[block]
    for in_channels, stride in ((6, 2), (8, 1)):
        layer = block_class(in_channels, 8, stride=stride, norm="BN", **options)
        x = torch.randn(2, in_channels, 9, 7)
        torch.testing.assert_close(add_before_relu(layer, x, torch.zeros(2, 8, 1, 1)), layer(x))


def test_feedback_changes_its_stage_and_those_above(parts):
    bottom_up, neck, _, images = parts
    plain_features = bottom_up(images)
    randomize(neck)
    feedback = neck.feed_back(neck(plain_features))
    assert list(feedback) == LEVELS[1:]
    for level in range(1, 4):
        changed = look_again(bottom_up, images, {LEVELS[level]: feedback[LEVELS[level]]})
        same = [torch.equal(changed[name], plain_features[name]) for name in LEVELS]
        assert same == [True] * level + [False] * (4 - level)


def test_blend_takes_the_type_of_the_later_step(parts):
    _, neck, _, _ = parts
    randomize(neck)
    before, after = (torch.randn(2, 1, 10, 7, 9)).unbind()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        blended = neck.blend({"p2": before.bfloat16()}, {"p2": after})["p2"]
    gate = neck.gate(after).sigmoid()
    assert blended.dtype == torch.float32
    torch.testing.assert_close(blended, gate * after + (1 - gate) * before, rtol=0.02, atol=0.02)


def test_every_parameter_learns(parts):
    _, neck, backbone, images = parts
    randomize(neck)
    sum(p.square().mean() for p in backbone.train()(images).values()).backward()
    assert [name for name, p in backbone.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_later_networks_are_copies_unless_shared():
    def count(steps, shared):
        bottom_up = resnet()
        backbone = RFP(bottom_up.output_shape(), 8, steps=steps, shared=shared).wrap(bottom_up)
        return sum(p.numel() for p in backbone.parameters())

    network = sum(p.numel() for p in resnet().parameters())
    assert count(3, shared=True) == count(2, shared=True) == count(2, shared=False) - network
    assert count(3, shared=False) == count(2, shared=False) + network


def test_all_networks_start_from_a_checkpoint_of_the_first(tmp_path):
    """As detectron2 loads ImageNet's weights: by the ends of names, into whatever fits."""
    source = plain.randomize(resnet())
    torch.save({"model": source.state_dict(), "matching_heuristics": True}, tmp_path / "resnet.pth")
    bottom_up = resnet()
    backbone = RFP(bottom_up.output_shape(), 8).wrap(bottom_up).eval()
    model = torch.nn.ModuleDict({"backbone": backbone})
    DetectionCheckpointer(model).load(str(tmp_path / "resnet.pth"))
    images = torch.randn(1, 3, 64, 64)
    expected = source.eval()(images)
    for network in (backbone.bottom_up, *backbone.later):
        torch.testing.assert_close(look_again(network, images, {}), expected)


def test_a_checkpoint_of_the_whole_keeps_the_later_networks_apart():
    backbones = []
    for _ in range(2):
        bottom_up = resnet()
        backbones.append(plain.randomize(RFP(bottom_up.output_shape(), 8).wrap(bottom_up)).eval())
    first, second = backbones
    second.load_state_dict(first.state_dict())
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(second(images), first(images))


def test_aspp_joins_four_views_of_a_quarter_each():
    aspp = ASPP(10)
    x = torch.randn(1, 10, 13, 13, requires_grad=True)
    out = aspp(x)
    assert out.shape == x.shape and out.min() == 0
    for layer in (aspp.point, *aspp.dilated, aspp.context):
        torch.nn.init.ones_(layer.weight)
        torch.nn.init.constant_(layer.bias, 1e3)
    reached = []
    for channel in (0, 2, 4, 6):
        (gradient,) = torch.autograd.grad(aspp(x)[0, channel, 6, 6], x)
        reached.append(gradient[0, 0].nonzero().sub(6).unique().tolist())
    assert reached == [[0], [-3, 0, 3], [-6, 0, 6], list(range(-6, 7))]


class PlainBottomUp(Backbone):
    def forward(self, images):
        raise NotImplementedError

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {name: ShapeSpec(channels=8, stride=2 ** (i + 2)) for i, name in enumerate(LEVELS)}


def test_bottom_up_without_stages_is_refused(build_neck):
    bottom_up = PlainBottomUp()
    with pytest.raises(ValueError, match="^bottom_up is a PlainBottomUp; RFP feeds back into the blocks of a ResNet$"):
        RFP(bottom_up.output_shape(), out_channels=8).wrap(bottom_up)
    with pytest.raises(NeckConfigError, match="^MODEL.NECK.BOTTOM_UP is a StridedPatches; RFP feeds back"):
        build_neck("RFP", "BOTTOM_UP", "build_strided_patches", "IN_FEATURES", ["fine", "coarse"])


def test_blocks_of_another_kind_are_refused():
    bottom_up = resnet(DeformBottleneckBlock, bottleneck_channels=4)
    with pytest.raises(ValueError, match="bottom_up has a DeformBottleneckBlock in res3"):
        RFP(bottom_up.output_shape(), out_channels=8).wrap(bottom_up)


def test_feedback_into_a_level_that_is_no_stage_is_refused():
    shapes = {"p5": ShapeSpec(channels=8, stride=32)}
    with pytest.raises(ValueError, match="in_features has p5; RFP can feed back into res2, res3, res4, res5 only"):
        RFP(shapes, out_channels=8).wrap(resnet())


def test_the_first_stage_alone_is_refused():
    with pytest.raises(ValueError, match="no level above the first stage"):
        RFP({"res2": ShapeSpec(channels=8, stride=4)}, out_channels=8)


def test_one_step_is_refused():
    with pytest.raises(ValueError, match="steps is 1; it must be at least 2"):
        RFP({"res3": ShapeSpec(channels=8, stride=8)}, out_channels=8, steps=1)
