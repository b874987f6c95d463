"""BiFPN's weighted nodes, wiring and compound scaling, against the formulas and against the `effdet` package."""

import pytest
import torch
from torch import nn

from necks import ESD1, BiFPN, NeckConfigError, compound_scaling
from necks.bifpn import Node, SamePool, fast_weights, softmax_weights, unbounded_weights

from . import plain


def expected_weights(mode, w):
    if mode is fast_weights:
        w = [max(v, 0) for v in w]
        return [v / (1e-4 + sum(w)) for v in w]
    if mode is softmax_weights:
        return torch.tensor(w).exp().div(torch.tensor(w).exp().sum()).tolist()
    return w if mode is unbounded_weights else [1.0] * len(w)


@pytest.mark.parametrize("as_in_paper", [False, True])
@pytest.mark.parametrize("mode", [fast_weights, softmax_weights, unbounded_weights, None])
def test_one_node_follows_the_formula(mode, as_in_paper):
    node = plain.randomize(Node(3, 4, norm="BN", weighting=mode, pre_activation=not as_in_paper)).eval()
    w = [0.7, -0.4, 1.9]
    if mode is not None:
        node.weight.data = torch.tensor(w)
    inputs = [torch.randn(2, 4, 5, 7) for _ in w]
    fused = sum(v * x for v, x in zip(expected_weights(mode, w), inputs, strict=True))
    torch.testing.assert_close(node.fuse(*inputs), fused)

    def convolve(x):
        return plain.batch_norm(node.pointwise.norm, plain.conv(node.pointwise, plain.conv(node.depthwise, x)))

    expected = plain.silu(convolve(fused)) if as_in_paper else convolve(plain.silu(fused))
    torch.testing.assert_close(node(*inputs), expected, rtol=1e-5, atol=1e-5)
    assert (node.pointwise.norm.eps, node.pointwise.norm.momentum) == (1e-5, 0.1)


def edge(layer, x):
    return plain.batch_norm(layer.norm, plain.conv(layer, x))


def node_of(layer, *inputs):
    """Fast fusion, then activation, convolution and norm."""
    w = layer.weight.clamp(min=0) / (1e-4 + layer.weight.clamp(min=0).sum())
    fused = sum(w[i] * x for i, x in enumerate(inputs))
    return edge(layer.pointwise, plain.conv(layer.depthwise, plain.silu(fused)))


def down(x):
    """The maximum of windows of 3×3 that start at every second pixel, or one pixel before where the size is odd."""
    padded = x
    for dim in (-2, -1):
        before, border = x.shape[dim] % 2, torch.full_like(padded.narrow(dim, 0, 1), -torch.inf)
        padded = torch.cat([border] * before + [padded, border], dim)
    windows = padded.unfold(-2, 3, 2).unfold(-2, 3, 2)
    return windows.amax((-2, -1))


@pytest.mark.parametrize("sizes", plain.SIZES.values(), ids=plain.SIZES)
def test_formula(input_shapes, sizes):
    neck = plain.randomize(BiFPN(input_shapes, 4, num_levels=5, num_layers=1)).eval()
    features = plain.random_features(input_shapes, sizes)
    c3, c4, c5 = features.values()
    (layer,) = neck.layers
    p6 = down(edge(neck.lateral_extra[0], c5))
    p7 = down(p6)
    first, second = layer.lateral_down, layer.lateral_up

    def up(x, like):
        return plain.nearest(x, like.shape[-2:])

    td6 = node_of(layer.top_down[3], p6, up(p7, p6))
    td5 = node_of(layer.top_down[2], edge(first[2], c5), up(td6, c5))
    td4 = node_of(layer.top_down[1], edge(first[1], c4), up(td5, c4))
    out3 = node_of(layer.top_down[0], edge(first[0], c3), up(td4, c3))
    out4 = node_of(layer.bottom_up[0], edge(second[0], c4), td4, down(out3))
    out5 = node_of(layer.bottom_up[1], edge(second[1], c5), td5, down(out4))
    out6 = node_of(layer.bottom_up[2], p6, td6, down(out5))
    out7 = node_of(layer.bottom_up[3], p7, down(out6))
    for result, expected in zip(neck(features).values(), (out3, out4, out5, out6, out7), strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


def test_same_pooling_at_even_and_odd_sizes():
    x = torch.randn(2, 3, 11, 8)
    torch.testing.assert_close(SamePool()(x), down(x), rtol=0, atol=0)
    assert SamePool()(torch.ones(1, 1, 1, 1)).tolist() == [[[[1.0]]]]


@pytest.mark.parametrize("fusion", ["bifpn_fa", "bifpn_sum"])
@pytest.mark.parametrize("image", [(256, 384), (301, 209)], ids=["even", "odd"])
def test_equals_effdet_with_copied_weights(input_shapes, fusion, image):
    reason = "the effdet package, which the official form is compared with, is not installed"
    efficientdet = pytest.importorskip("effdet.efficientdet", reason=reason)
    config = pytest.importorskip("effdet.config", reason=reason).get_efficientdet_config("tf_efficientdet_d0")
    config.update({"image_size": image, "fpn_channels": 16, "fpn_cell_repeats": 3, "fpn_name": fusion})
    infos = [{"num_chs": shape.channels, "reduction": shape.stride} for shape in input_shapes.values()]
    theirs = plain.randomize(efficientdet.BiFpn(config, infos)).eval()
    weighting = fast_weights if fusion == "bifpn_fa" else None
    ours = BiFPN(input_shapes, 16, num_levels=5, num_layers=3, weighting=weighting).eval()
    copy_from_effdet(theirs, ours)
    sizes = [tuple(-(-length // shape.stride) for length in image) for shape in input_shapes.values()]
    features = plain.random_features(input_shapes, sizes)
    expected = theirs(list(features.values()))
    for result, other in zip(ours(features).values(), expected, strict=True):
        torch.testing.assert_close(result, other, rtol=1e-5, atol=1e-5)


def copy_from_effdet(theirs: nn.Module, ours: BiFPN) -> None:
    """Fill our layers in the order in which effdet runs its own."""

    def fill(conv, other):
        conv.load_state_dict({"weight": other.conv.weight} | {f"norm.{k}": v for k, v in other.bn.state_dict().items()})
        if other.conv.bias is not None:  # a norm takes the bias away again
            conv.norm.running_mean -= other.conv.bias
        assert (conv.norm.eps, conv.norm.momentum) == (other.bn.eps, other.bn.momentum) == (1e-3, 0.01)

    with torch.no_grad():
        fill(ours.lateral_extra[0], theirs.resample["3"].conv)
        for layer, cell in zip(ours.layers, theirs.cell, strict=True):
            nodes = [*reversed(layer.top_down), *layer.bottom_up]
            edges = [[layer.lateral_down[3], layer.lateral_down[4]], *([e] for e in reversed(layer.lateral_down[:3]))]
            edges += [[e] for e in layer.lateral_up]
            for node, own, other in zip(nodes, edges, cell.fnode, strict=True):
                if node.weight is not None:
                    node.weight.copy_(other.combine.edge_weights)
                separable = other.after_combine.conv
                node.depthwise.weight.copy_(separable.conv_dw.weight)
                node.pointwise.weight.copy_(separable.conv_pw.weight)
                node.pointwise.norm.load_state_dict(separable.bn.state_dict())
                if separable.conv_pw.bias is not None:
                    node.pointwise.norm.running_mean -= separable.conv_pw.bias
                laterals = [r.conv for r in other.combine.resample.values() if hasattr(r, "conv")]
                own = [e for e in own if not isinstance(e, nn.Identity)]
                for conv, lateral in zip(own, laterals, strict=True):
                    fill(conv, lateral)


def test_formula_as_in_the_paper(input_shapes):
    neck = plain.randomize(BiFPN(input_shapes, 8, num_layers=1, as_in_paper=True)).eval()
    features = plain.random_features(input_shapes, plain.SIZES["odd"])
    p3, p4, p5 = (edge(e, c) for e, c in zip(neck.shared, features.values(), strict=True))
    (layer,) = neck.layers
    td4 = layer.top_down[1](p4, plain.nearest(p5, p4.shape[-2:]))
    out3 = layer.top_down[0](p3, plain.nearest(td4, p3.shape[-2:]))
    out4 = layer.bottom_up[0](p4, td4, down(out3))
    out5 = layer.bottom_up[1](p5, down(out4))
    for result, expected in zip(neck(features).values(), (out3, out4, out5), strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
    assert not any(node.pre_activation for node in (*layer.top_down, *layer.bottom_up))


def test_every_level_reaches_every_level_in_one_layer(input_shapes):
    neck = BiFPN(input_shapes, 8, norm="", num_layers=1)
    for target in neck.names:
        features = {
            name: torch.randn(1, s.channels, 256 // s.stride, 256 // s.stride, requires_grad=True)
            for name, s in input_shapes.items()
        }
        neck(features)[target].sum().backward()
        assert all(x.grad.abs().sum() > 0 for x in features.values())


@pytest.mark.parametrize("norm", ["BN", "SyncBN", "FrozenBN"])
def test_batch_norms_are_those_of_efficientdet(input_shapes, norm):
    norms = [m for m in BiFPN(input_shapes, 4, norm=norm).modules() if hasattr(m, "running_var")]
    assert {m.eps for m in norms} == {1e-3}
    assert {getattr(m, "momentum", 0.01) for m in norms} == {0.01}


def test_compound_scaling():
    scalings = [compound_scaling(phi) for phi in range(8)]
    assert [s.width for s in scalings] == [64, 88, 112, 160, 224, 288, 384, 384]
    assert [s.num_layers for s in scalings] == [3, 4, 5, 6, 7, 7, 8, 8]
    assert [s.weighted for s in scalings] == [True] * 6 + [False] * 2
    with pytest.raises(ValueError, match="compound is 8; it must be 0 to 7"):
        compound_scaling(8)


@pytest.mark.parametrize("phi, layers, width, weighted", [(1, 4, 88, True), (7, 8, 384, False)])
def test_compound_coefficient_sets_width_layers_and_weights(build_neck, phi, layers, width, weighted):
    neck = build_neck("BiFPN", "BIFPN.COMPOUND", phi).neck
    assert {shape.channels for shape in neck.output_shape().values()} == {width}
    assert len(neck.layers) == layers
    assert all((node.weight is not None) == weighted for layer in neck.layers for node in layer.bottom_up)


def test_unknown_compound_coefficient_names_the_key(build_neck):
    with pytest.raises(NeckConfigError, match="^MODEL.NECK.BIFPN.COMPOUND is 9; it must be 0 to 7"):
        build_neck("BiFPN", "BIFPN.COMPOUND", 9)


def test_parts_by_config(build_neck):
    neck = build_neck("BiFPN", "BIFPN.DOWNSAMPLE", "esd1", "BIFPN.FUSION", "softmax", "BIFPN.NUM_LAYERS", 2).neck
    assert len(neck.layers) == 2
    assert all(type(down) is ESD1 for layer in neck.layers for down in layer.down)
    assert all(node.weighting is softmax_weights for node in neck.layers[0].bottom_up)
