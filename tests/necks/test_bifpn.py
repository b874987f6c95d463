"""BiFPN's weighted nodes, wiring and compound scaling."""

import pytest
import timm
import torch
import torch.nn.functional as F

from necks import ESD1, BiFPN, NeckConfigError, compound_scaling
from necks.bifpn import BiFPNLayer, Node, fast_weights, max_pool, softmax_weights, unbounded_weights
from necks.layers import nearest


def expected_weights(mode, w):
    if mode is fast_weights:
        w = [max(v, 0) for v in w]
        return [v / (1e-4 + sum(w)) for v in w]
    if mode is softmax_weights:
        return torch.tensor(w).exp().div(torch.tensor(w).exp().sum()).tolist()
    return w


@pytest.mark.parametrize("mode", [fast_weights, softmax_weights, unbounded_weights])
def test_one_node_follows_the_formula(mode):
    node = Node(3, 4, norm="", weighting=mode)
    w = [0.7, -0.4, 1.9]
    node.weight.data = torch.tensor(w)
    inputs = [torch.randn(2, 4, 5, 7) for _ in w]
    fused = sum(v * x for v, x in zip(expected_weights(mode, w), inputs, strict=True))
    torch.testing.assert_close(node.fuse(*inputs), fused)
    depthwise = F.conv2d(fused, node.depthwise.weight, padding=1, groups=4)
    pointwise = F.conv2d(depthwise, node.pointwise.weight, node.pointwise.bias)
    torch.testing.assert_close(node(*inputs), pointwise * pointwise.sigmoid())


def test_layer_follows_the_formula():
    layer = BiFPNLayer(3, 4, "", fast_weights, nearest, max_pool)
    a, b, c = (torch.randn(1, 4, size, size) for size in (8, 4, 2))

    def up(x):
        return x.repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)

    def down(x):
        return F.max_pool2d(x, 3, 2, 1)

    td = layer.top_down[1](b, up(c))
    out_a = layer.top_down[0](a, up(td))
    out_b = layer.bottom_up[0](b, td, down(out_a))
    out_c = layer.bottom_up[1](c, down(out_b))
    for result, expected in zip(layer([a, b, c]), (out_a, out_b, out_c), strict=True):
        torch.testing.assert_close(result, expected)


def test_extra_levels_enter_before_the_fusion(input_shapes):
    neck = BiFPN(input_shapes, 8, num_levels=5, norm="", num_layers=1)
    features = {name: torch.randn(1, s.channels, 256 // s.stride, 256 // s.stride) for name, s in input_shapes.items()}
    seen = []
    neck.layers[0].register_forward_pre_hook(lambda _, args: seen.extend(args[0]))
    neck(features)
    p6 = F.max_pool2d(neck.project[3](features["res5"]), 3, 2, 1)
    torch.testing.assert_close(seen[2], neck.project[2](features["res5"]))
    torch.testing.assert_close(seen[3], p6)
    torch.testing.assert_close(seen[4], F.max_pool2d(p6, 3, 2, 1))


def test_every_level_reaches_every_level_in_one_layer(input_shapes):
    neck = BiFPN(input_shapes, 8, norm="", num_layers=1)
    for target in neck.names:
        features = {
            name: torch.randn(1, s.channels, 256 // s.stride, 256 // s.stride, requires_grad=True)
            for name, s in input_shapes.items()
        }
        neck(features)[target].sum().backward()
        assert all(x.grad.abs().sum() > 0 for x in features.values())


def test_compound_scaling():
    assert [compound_scaling(phi).width for phi in range(8)] == [64, 88, 112, 160, 224, 288, 384, 384]
    assert [compound_scaling(phi).num_layers for phi in range(8)] == [3, 4, 5, 6, 7, 7, 8, 8]
    assert [compound_scaling(phi).head_depth for phi in range(8)] == [3, 3, 3, 4, 4, 4, 5, 5]
    assert [compound_scaling(phi).input_size for phi in range(8)] == [512, 640, 768, 896, 1024, 1152, 1280, 1536]
    assert all(timm.list_pretrained(f"{compound_scaling(phi).backbone}.*") for phi in range(8))
    assert [int(compound_scaling(phi).backbone[-1]) for phi in range(8)] == list(range(8))
    with pytest.raises(NeckConfigError, match="MODEL.NECK.BIFPN.COMPOUND is 8: choose 0 to 7"):
        compound_scaling(8)


def test_compound_coefficient_sets_width_and_layers(build_neck):
    neck = build_neck("BiFPN", "BIFPN.COMPOUND", 1).neck
    assert {shape.channels for shape in neck.output_shape().values()} == {88}
    assert len(neck.layers) == 4


def test_parts_by_config(build_neck):
    neck = build_neck("BiFPN", "BIFPN.DOWNSAMPLE", "esd1", "BIFPN.FUSION", "softmax", "BIFPN.NUM_LAYERS", 2).neck
    assert len(neck.layers) == 2
    assert all(type(down) is ESD1 for layer in neck.layers for down in layer.down)
    assert all(node.weighting is softmax_weights for node in neck.layers[0].bottom_up)
