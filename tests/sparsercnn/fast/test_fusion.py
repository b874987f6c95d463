"""Convolutions that take over what follows them give the same, and leave alone what others read."""

import pytest
import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d, ShapeSpec, get_norm
from detectron2.modeling import FPN, ResNet
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock
from timm.layers import BatchNormAct2d, ConvNormAct, freeze_batch_norm_2d
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from sparsercnn import prepare_for_inference
from sparsercnn.fast.fusion import fold_norms, fuse_convolutions, image_convolutions
from sparsercnn.fast.processor import has_onednn
from sparsercnn.fast.tracing import trace

from .graphs import calls_of, fused_calls, missed

needs_onednn = pytest.mark.skipif(not has_onednn(torch.float32), reason="needs oneDNN")


def with_statistics(module: nn.Module) -> nn.Module:
    """The module in evaluation mode, its norms with statistics and factors of their own."""
    for norm in (m for m in module.modules() if getattr(m, "running_var", None) is not None):
        nn.init.uniform_(norm.running_mean, -1, 1)
        nn.init.uniform_(norm.running_var, 0.5, 2)
        if norm.weight is not None:
            nn.init.uniform_(norm.weight, 0.5, 1.5)
    return module.eval().requires_grad_(False)


class Composed(nn.Module):
    """Layers by name, and a function of them and the input."""

    def __init__(self, function, **layers):
        super().__init__()
        self.function = function
        self.layers = nn.ModuleDict(layers)

    def forward(self, x):
        return self.function(self.layers, x)


def shared_norm(layers, x):
    return layers["bn"](layers["conv"](x)) + layers["bn"](layers["conv"](2 * x))


def own_norms(layers, x):
    return layers["bn"](layers["conv"](x)) + layers["other"](layers["conv"](x))


def read_before_norm(layers, x):
    y = layers["conv"](x)
    return y + layers["bn"](y)


def bn(channels: int = 8, **options) -> nn.Module:
    return nn.BatchNorm2d(channels, **options)


FOLDED = {
    "sequential": lambda: nn.Sequential(nn.Conv2d(4, 8, 3), bn(), nn.SiLU()),
    "detectron2": lambda: nn.Sequential(Conv2d(4, 8, 3, norm=get_norm("BN", 8), activation=F.relu)),
    "frozen": lambda: nn.Sequential(nn.Conv2d(4, 8, 3, bias=False), FrozenBatchNorm2d(8)),
    "synchronized": lambda: nn.Sequential(nn.Conv2d(4, 8, 3), nn.SyncBatchNorm(8)),
    "naive synchronized": lambda: nn.Sequential(nn.Conv2d(4, 8, 3), get_norm("naiveSyncBN", 8)),
    "not affine": lambda: nn.Sequential(nn.Conv2d(4, 8, 3), bn(affine=False)),
    "two in a row": lambda: nn.Sequential(nn.Conv2d(4, 8, 3), bn(), bn()),
    "timm": lambda: ConvNormAct(4, 8, 3),
    "timm, frozen": lambda: freeze_batch_norm_2d(nn.Sequential(nn.Conv2d(4, 8, 3), BatchNormAct2d(8))),
    "called twice": lambda: Composed(shared_norm, conv=nn.Conv2d(4, 8, 3), bn=bn()),
    "grouped": lambda: nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), bn()),
}
KEPT = {
    "norm first": lambda: nn.Sequential(bn(4), nn.Conv2d(4, 8, 1)),
    "after another layer": lambda: nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), bn()),
    "other norms each time": lambda: Composed(own_norms, conv=nn.Conv2d(4, 8, 1), bn=bn(), other=bn()),
    "read before": lambda: Composed(read_before_norm, conv=nn.Conv2d(4, 8, 1), bn=bn()),
    "statistics of the batch": lambda: nn.Sequential(nn.Conv2d(4, 8, 1), bn(track_running_stats=False)),
}


@pytest.mark.parametrize(("kind", "name"), [("folded", name) for name in FOLDED] + [("kept", name) for name in KEPT])
@torch.no_grad()
def test_norms_are_folded_where_they_can_be(kind, name):
    torch.manual_seed(0)
    module = with_statistics({"folded": FOLDED, "kept": KEPT}[kind][name]())
    x = torch.randn(2, 4, 9, 9)
    expected = module(x)
    traced = trace(module)
    fold_norms(traced)
    assert_close(traced(x), expected, rtol=1e-4, atol=1e-5)
    calls = calls_of(traced)
    assert (calls["batch_norm"] + calls["mul"] > (name == "called twice")) == (kind == "kept")
    assert_close(module(x), expected, rtol=0, atol=0)


def residual(layers, x):
    y = layers["before"](x)
    return F.relu_(layers["conv"](F.relu(y)) + y)


def addend_later(layers, x):
    y = layers["conv"](x)
    z = F.avg_pool2d(layers["before"](x), 3, 1, 1)
    y += z
    return y.relu()


def addend_read_later(layers, x):
    y = layers["before"](x)
    z = layers["conv"](x) + y
    return z * y


def addend_returned(layers, x):
    y = layers["before"](x)
    return [y, layers["conv"](y) + y]


def input_added(layers, x):
    return layers["conv"](x) + x


def own_input_added(layers, x):
    y = layers["before"](x)
    return layers["conv"](y) + y


def view_read_later(layers, x):
    y = layers["before"](x)
    part = y[:, :4]
    return (layers["conv"](x) + y).sum(1, keepdim=True) * part


def input_overwritten_meanwhile(layers, x):
    y = layers["before"](x)
    z = layers["conv"](y)
    return z + F.relu_(y)


def overwritten_by_another(layers, x):
    y = layers["before"](x)
    early = layers["conv"](y)
    late = layers["before"](x) + y
    return early + F.avg_pool2d(late, 3, 1, 1)


def twice_itself(layers, x):
    y = layers["conv"](x)
    return y + y


def smaller_addend(layers, x):
    return layers["conv"](x) + layers["before"](x.mean((2, 3), keepdim=True))


def gelu_then_sum(layers, x):
    return F.gelu(layers["conv"](x), approximate="tanh") + F.gelu(layers["before"](x))


def activation_after_sum(layers, x):
    return F.silu(layers["conv"](x) + layers["before"](x))


def read_and_activated(layers, x):
    y = layers["conv"](x)
    return torch.cat([y, y.sigmoid()])


def size_read(layers, x):
    y = layers["conv"](x)
    return F.interpolate(F.hardswish(y), size=(y.shape[-1], 3))


# Calls of convolutions with that activation, with an addend or without.
FUSED = {
    residual: {(None, False): 1, ("relu", True): 1},
    addend_later: {("relu", True): 1, (None, False): 1},
    addend_read_later: {(None, False): 1, (None, True): 1},
    addend_returned: {(None, False): 1, (None, True): 1},
    input_added: {(None, True): 1},
    own_input_added: {(None, False): 1, (None, True): 1},
    view_read_later: {(None, False): 1, (None, True): 1},
    input_overwritten_meanwhile: {(None, False): 2},
    overwritten_by_another: {(None, False): 2, (None, True): 1},
    twice_itself: {(None, False): 1},
    smaller_addend: {(None, False): 1, (None, True): 1},
    gelu_then_sum: {("gelu_tanh", False): 1, ("gelu", False): 1},
    activation_after_sum: {(None, False): 1, (None, True): 1},
    read_and_activated: {(None, False): 1},
    size_read: {("hardswish", False): 1},
}


@needs_onednn
@pytest.mark.parametrize("function", FUSED, ids=lambda function: function.__name__)
@torch.inference_mode()
def test_additions_and_activations_are_taken_over_where_that_changes_nothing(function):
    torch.manual_seed(0)
    layers = {"before": nn.Conv2d(8, 8, 1), "conv": nn.Conv2d(8, 8, 3, padding=1)}
    module = Composed(function, **layers).requires_grad_(False)
    x = torch.randn(2, 8, 7, 9).contiguous(memory_format=torch.channels_last)
    kept, expected = x.clone(), module(x)
    traced = trace(module)
    fuse_convolutions(traced, winograd=False, output_dtype=torch.float32)
    assert_close(traced(x), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(x, kept)
    assert fused_calls(traced) == FUSED[function]


@needs_onednn
@torch.inference_mode()
def test_blocks_keep_no_memory_that_they_need_not():
    blocks = [BottleneckBlock(16, 32, bottleneck_channels=8), BottleneckBlock(32, 32, bottleneck_channels=8)]
    traced = trace(with_statistics(nn.Sequential(*blocks)))
    fold_norms(traced)
    fuse_convolutions(traced, winograd=False, output_dtype=torch.float32)
    assert [n.kwargs["overwrite"] for n in traced.graph.nodes if "overwrite" in n.kwargs] == [True, True]


def test_the_convolutions_that_read_the_image():
    first, second, third, fourth = (nn.Conv2d(3, 3, 1) for _ in range(4))

    def function(layers, x):
        x = F.pad(x * 2, (0, -x.shape[-1] % 8))
        y = layers["first"](x)
        return layers["third"](F.max_pool2d(y, 2)), layers["second"](x), layers["fourth"](y)[..., : x.shape[-1] // 2]

    traced = trace(Composed(function, first=first, second=second, third=third, fourth=fourth))
    found = {id(conv.weight) for conv in image_convolutions(traced)}
    assert found == {id(first.weight), id(second.weight)}


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
    fpn = FPN(bottom_up, ["res2", "res3", "res4", "res5"], 16, "", top_block, fuse_type, square_pad=64)
    fpn = with_statistics(fpn)
    prepared = prepare_for_inference(fpn).model
    assert prepared.output_shape() == fpn.output_shape()
    assert prepared.output_shape()["p2"] == ShapeSpec(channels=16, stride=4)
    assert prepared.size_divisibility == 32 and prepared.padding_constraints == {"square_size": 64}
    x = torch.randn(2, 3, 64, 96)
    expected, found = fpn(x), prepared(x)
    assert list(found) == list(expected)
    for name in found:
        assert_close(found[name], expected[name], rtol=1e-4, atol=1e-4)
    if has_onednn(torch.float32):
        assert not missed(prepared)
        # The four blocks and the three lower levels.
        assert sum(count for (_, has_addend), count in fused_calls(prepared).items() if has_addend) == 7


class Weighted(nn.Conv2d):
    """A convolution that does more, as weight standardization does."""

    def forward(self, x):
        return super().forward(x) * 2


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(Weighted(8, 8, 3), nn.BatchNorm2d(8)),
        lambda: nn.Sequential(nn.Identity(), BasicBlock(8, 8, norm="BN")),
        lambda: nn.Sequential(*(BasicBlock(8, 8, norm="BN") for _ in range(3))),
        lambda: nn.Sequential(Conv2d(8, 8, 3, padding="same"), Conv2d(8, 8, 1)),
        lambda: nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), nn.ReLU()),
        lambda: nn.Sequential(nn.ReLU(), Conv2d(8, 8, 1), nn.Dropout(0.5)),
    ],
    ids=["subclass", "first", "in a row", "string padding", "reflecting", "no convolution first"],
)
@torch.no_grad()
def test_prepared_parts_give_the_same(make):
    torch.manual_seed(0)
    module = with_statistics(make())
    x = torch.randn(2, 8, 9, 9)
    before, expected = x.clone(), module(x)
    assert_close(prepare_for_inference(module)(x), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(x, before)
