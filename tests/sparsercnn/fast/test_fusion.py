"""Parts of the backbone, made for inference, give what detectron2's give."""

import copy
import pickle

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import FPN, ResNet
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem
from torch import nn
from torch.testing import assert_close

from sparsercnn import prepare_for_inference
from sparsercnn.fast.convolution import has_onednn
from sparsercnn.fast.fusion import FusedFPN, FusedStem
from sparsercnn.fast.packed_linear import PackedDynamicLayer, PackedLinear, pack_linear_layers
from sparsercnn.modeling.head import DynamicLayer, RefinementStage

pytestmark = pytest.mark.skipif(not has_onednn(torch.bfloat16), reason="needs a CPU that computes in bfloat16")


def channels_last(*shape: int) -> torch.Tensor:
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", [(1, 1), (2, 7), (64, 64), (250, 33), (257, 40), (259, 31), (513, 6)])
@torch.inference_mode()
def test_stem_of_any_size(size):
    torch.manual_seed(0)
    stem = BasicStem(3, 16, norm="")
    x = channels_last(2, 3, *size)
    assert_close(FusedStem(stem)(x), stem(x), rtol=1e-5, atol=1e-5)
    assert stem.conv1.padding == (3, 3)


@pytest.mark.parametrize(
    "changes", [{"dilation": (2, 2), "padding": (6, 6)}, {"padding": (3, 2)}, {"stride": (1, 1)}, {"stride": (2, 1)}]
)
@torch.inference_mode()
def test_stem_with_another_convolution(changes):
    torch.manual_seed(0)
    stem = BasicStem(3, 16, norm="")
    for name, value in changes.items():
        setattr(stem.conv1, name, value)
    stem = nn.Sequential(stem)
    x = channels_last(1, 3, 40, 36)
    assert_close(prepare_for_inference(stem)(x), stem(x), rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_stem_with_a_plain_convolution():
    torch.manual_seed(0)
    stem = BasicStem(3, 16, norm="")
    stem.conv1 = nn.Conv2d(4, 16, 7, 2, 3)
    stem = nn.Sequential(stem)
    x = channels_last(1, 4, 40, 36)
    assert_close(prepare_for_inference(stem)(x), stem(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fuse_type", ["sum", "avg"])
@pytest.mark.parametrize(
    "top_block", [None, LastLevelMaxPool(), LastLevelP6P7(24, 16, "res5"), LastLevelP6P7(16, 16, "p5")]
)
@torch.inference_mode()
def test_fpn(fuse_type, top_block):
    torch.manual_seed(0)
    widths = (8, 12, 16, 24)
    stages = [
        [BasicBlock(c_in, c_out, stride=1 if i == 0 else 2)]
        for i, (c_in, c_out) in enumerate(zip((8, *widths), widths, strict=False))
    ]
    bottom_up = ResNet(BasicStem(3, 8), stages, out_features=["res2", "res3", "res4", "res5"])
    fpn = FPN(bottom_up, ["res2", "res3", "res4", "res5"], 16, "", top_block, fuse_type, square_pad=64).eval()
    fused = FusedFPN(fpn, winograd=True)
    assert fused.output_shape() == fpn.output_shape() and fused.output_shape()["p2"] == ShapeSpec(channels=16, stride=4)
    assert fused.size_divisibility == 32 and fused.padding_constraints == {"square_size": 64}
    x = channels_last(2, 3, 64, 96)
    expected = fpn(x)
    found = fused(x)
    assert list(found) == list(expected)
    for name in found:
        assert_close(found[name], expected[name], rtol=1e-4, atol=1e-4)

    output = fused.take_finest_output()
    without = fused(x)
    assert_close(output(without["p2"]), expected["p2"], rtol=1e-4, atol=1e-4)
    assert_close(without["p3"], expected["p3"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [1, 7, 300])
@torch.inference_mode()
def test_packed_layers(dtype, rows):
    torch.manual_seed(0)
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.02}
    layer, dynamic = nn.Linear(40, 24).to(dtype), DynamicLayer(40, 2 * 24).to(dtype)
    x = torch.randn(2, rows, 40)
    packed = PackedLinear(layer.weight, layer.bias, rows=100)
    for one in (packed, copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        assert_close(one(x), layer(x.to(dtype)), **close)
    for found, expected in zip(PackedDynamicLayer(dynamic, rows=100)(x), dynamic(x.to(dtype)), strict=True):
        assert_close(found, expected, **close)


@torch.inference_mode()
def test_packed_stage():
    torch.manual_seed(0)
    stage = RefinementStage(32, 3, 4, 64, 8, 1, 3)
    objects, roi_features = torch.randn(2, 10, 32), torch.randn(20, 49, 32)
    expected = stage(objects, roi_features)
    pack_linear_layers([stage, stage], rows=10)  # as when stages share their weights
    assert not [m for m in stage.modules() if isinstance(m, DynamicLayer)]
    for found, wanted in zip(stage(objects, roi_features), expected, strict=True):
        assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_dynamic_layer_makes_the_same_with_and_without_gradients():
    torch.manual_seed(0)
    layer, x = DynamicLayer(6, 8), torch.randn(2, 5, 6)
    with torch.no_grad():
        halves = layer(x)
    for with_gradient, without in zip(layer(x), halves, strict=True):
        assert with_gradient.requires_grad and with_gradient.shape == (2, 5, 4)
        assert_close(with_gradient, without)
