import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, ResNet

from necks import FPN, RFP, NeckConfigError
from necks.rfp import ASPP

LEVELS = ["res2", "res3", "res4", "res5"]


def resnet() -> ResNet:
    stages, channels = [], 8
    for first_stride, out_channels in ((1, 8), (2, 12), (2, 16), (2, 20)):
        stages.append(
            ResNet.make_stage(
                BasicBlock,
                2,
                stride_per_block=[first_stride, 1],
                in_channels=channels,
                out_channels=out_channels,
                norm="BN",
            )
        )
        channels = out_channels
    return ResNet(BasicStem(3, 8, norm="BN"), stages, out_features=LEVELS)


@pytest.fixture
def parts():
    """A ResNet, RFP on it, the backbone of the two, and an image of odd size."""
    torch.manual_seed(0)
    bottom_up = resnet()
    neck = RFP(bottom_up.output_shape(), out_channels=10)
    backbone = neck.wrap(bottom_up).eval()
    return bottom_up, neck, backbone, torch.randn(2, 3, 75, 97)


def randomise(neck: RFP) -> None:
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


def test_feedback_changes_every_stage_through_its_first_block(parts):
    bottom_up, neck, backbone, images = parts
    plain = bottom_up(images)
    pyramid = neck(plain)
    randomise(neck)
    feedback = neck.feed_back(pyramid)
    stem = bottom_up.stem(images)
    for level in range(4):
        only_this = {LEVELS[level]: feedback[LEVELS[level]]}
        changed = backbone._run_stages(stem, only_this)
        same = [torch.equal(changed[name], plain[name]) for name in LEVELS]
        assert same == [True] * level + [False] * (4 - level)
    first, second = bottom_up.stages[0]
    expected = second((first(stem) + feedback["res2"]).relu())
    torch.testing.assert_close(backbone._run_stages(stem, feedback)["res2"], expected)


def test_two_steps_blend_through_the_gate(parts):
    bottom_up, neck, backbone, images = parts
    randomise(neck)
    before = neck(bottom_up(images))
    after = neck(backbone._run_stages(bottom_up.stem(images), neck.feed_back(before)))
    for name, got in backbone(images).items():
        gate = neck.gate(after[name]).sigmoid()
        torch.testing.assert_close(got, gate * after[name] + (1 - gate) * before[name])


def test_blend_takes_the_type_of_the_later_step(parts):
    _, neck, _, _ = parts
    randomise(neck)
    before, after = (torch.randn(2, 1, 10, 7, 9)).unbind()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        blended = neck.blend({"p2": before.bfloat16()}, {"p2": after})["p2"]
    gate = neck.gate(after).sigmoid()
    assert blended.dtype == torch.float32
    torch.testing.assert_close(blended, gate * after + (1 - gate) * before, rtol=0.02, atol=0.02)


def test_steps_share_weights_and_every_one_of_them_learns(parts):
    _, neck, backbone, images = parts
    randomise(neck)
    sum(p.square().mean() for p in backbone.train()(images).values()).backward()
    assert [name for name, p in backbone.named_parameters() if p.grad is None or not p.grad.any()] == []
    three = RFP(neck.fpn.output_shape(), out_channels=10, steps=3)
    two = RFP(neck.fpn.output_shape(), out_channels=10, steps=2)
    assert three.state_dict().keys() == two.state_dict().keys()


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


def test_bottom_up_without_blocks_is_refused():
    bottom_up = PlainBottomUp()
    with pytest.raises(NeckConfigError, match="MODEL.NECK.BOTTOM_UP.*PlainBottomUp.*choose build_resnet_backbone$"):
        RFP(bottom_up.output_shape(), out_channels=8).wrap(bottom_up)


def test_feedback_into_a_level_that_is_no_stage_is_refused():
    shapes = {"p5": ShapeSpec(channels=8, stride=32)}
    with pytest.raises(NeckConfigError, match="MODEL.NECK.IN_FEATURES.*p5.*res2, res3"):
        RFP(shapes, out_channels=8).wrap(resnet())


def test_one_step_is_refused():
    with pytest.raises(NeckConfigError, match="MODEL.NECK.RFP.STEPS"):
        RFP({"res2": ShapeSpec(channels=8, stride=4)}, out_channels=8, steps=1)
