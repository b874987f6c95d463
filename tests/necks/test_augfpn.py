"""AugFPN's residual feature augmentation, its top-down path and its pyramid for consistent supervision."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone

from necks import FPN, AugFPN
from necks.augfpn import ResidualFeatureAugmentation

from . import plain

LEVELS = ["res2", "res3", "res4", "res5"]
SHAPES = {name: ShapeSpec(channels=4 * (i + 1), stride=2 ** (i + 2)) for i, name in enumerate(LEVELS)}


@pytest.fixture(params=plain.SIZES.values(), ids=plain.SIZES)
def features(request) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return plain.random_features(SHAPES, request.param)


def aligned_bilinear(x, size):
    """Linear interpolation between the pixels, the outermost ones staying at the border."""
    for dim, length in ((-2, size[0]), (-1, size[1])):
        position = torch.arange(length) * ((x.shape[dim] - 1) / max(length - 1, 1))
        low = position.floor().long().clamp(max=max(x.shape[dim] - 2, 0))
        high = (low + 1).clamp(max=x.shape[dim] - 1)
        fraction = (position - low).view(-1, 1) if dim == -2 else position - low
        x = x.index_select(dim, low) * (1 - fraction) + x.index_select(dim, high) * fraction
    return x


def pooled(x, size):
    """Means of windows from floor(i · H / size[0]) to ceil((i + 1) · H / size[0]), columns likewise."""
    height, width = x.shape[-2:]

    def window(i, length, count):
        return slice(i * length // count, -(-(i + 1) * length // count))

    rows = [
        [x[..., window(i, height, size[0]), window(j, width, size[1])].mean((-2, -1)) for j in range(size[1])]
        for i in range(size[0])
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def augmentation(module, x):
    contexts = []
    for ratio, layer in zip((0.1, 0.2, 0.3), module.reduce, strict=True):
        size = [max(1, int(length * ratio)) for length in x.shape[-2:]]
        contexts.append(aligned_bilinear(plain.conv(layer, pooled(x, size)), x.shape[-2:]))
    first, second = module.weigh
    weights = plain.sigmoid(plain.conv(second, plain.conv(first, torch.cat(contexts, 1)).clamp(min=0)))
    return sum(weights[:, i : i + 1] * context for i, context in enumerate(contexts))


@pytest.mark.parametrize("size", [(20, 30), (21, 17), (3, 5)], ids=str)
def test_augmentation_formula(size):
    module = plain.randomize(ResidualFeatureAugmentation(6, 8))
    x = torch.randn(2, 6, *size)
    torch.testing.assert_close(module(x), augmentation(module, x), rtol=1e-5, atol=1e-5)


def test_formula(features):
    neck = plain.randomize(AugFPN(SHAPES, out_channels=8)).eval()
    c5 = features["res5"]
    laterals = [plain.conv(layer, x) for layer, x in zip(neck.lateral, features.values(), strict=True)]
    merged = [laterals[3] + augmentation(neck.augment, c5)]
    for m in reversed(laterals[:3]):
        merged.insert(0, m + plain.nearest(merged[0], m.shape[-2:]))
    expected = [plain.conv(layer, m) for layer, m in zip(neck.output, merged, strict=True)]
    for result, e in zip(neck(features).values(), expected, strict=True):
        torch.testing.assert_close(result, e, rtol=1e-5, atol=1e-5)


def test_each_weight_is_a_sigmoid_of_its_own():
    module = ResidualFeatureAugmentation(6, 8)
    contexts = module.contexts(torch.randn(2, 6, 20, 30))
    torch.nn.init.constant_(module.weigh[1].bias, 50.0)
    torch.testing.assert_close(module.weights(contexts), torch.ones(2, 3, 20, 30))


def test_contexts_are_pooled_at_their_ratios():
    augment = ResidualFeatureAugmentation(6, 8)
    sizes = []
    for reduce in augment.reduce:
        reduce.register_forward_hook(lambda module, args, output: sizes.append(tuple(output.shape[-2:])))
    contexts = augment.contexts(torch.randn(1, 6, 20, 34))
    assert sizes == [(2, 3), (4, 6), (6, 10)]
    assert {tuple(c.shape) for c in contexts} == {(1, 8, 20, 34)}
    sizes.clear()
    augment(torch.randn(1, 6, 5, 3))
    assert sizes == [(1, 1), (1, 1), (1, 1)]


def test_without_augmentation_it_is_fpn(features):
    neck, fpn = AugFPN(SHAPES, out_channels=8, num_levels=5).eval(), FPN(SHAPES, out_channels=8, num_levels=5)
    fpn.load_state_dict({k: v for k, v in neck.state_dict().items() if not k.startswith("augment.")})
    assert not torch.equal(neck(features)["p2"], fpn(features)["p2"])
    for parameter in neck.augment.reduce.parameters():
        torch.nn.init.zeros_(parameter)
    for name, expected in fpn(features).items():
        torch.testing.assert_close(neck(features)[name], expected)


def test_in_training_the_laterals_stand_beside_the_pyramid(features):
    neck = AugFPN(SHAPES, out_channels=8, num_levels=5)
    names = ["p2", "p3", "p4", "p5", "p6"]
    evaluated, trained = neck.eval()(features), neck.train()(features)
    assert list(evaluated) == names
    assert list(trained) == names + [f"lateral_{name}" for name in names]
    for name in names:
        torch.testing.assert_close(trained[name], evaluated[name])
        assert trained[f"lateral_{name}"].shape == trained[name].shape
    for lateral, (name, x) in zip(neck.lateral, features.items(), strict=True):
        torch.testing.assert_close(trained[name.replace("res", "lateral_p")], lateral(x))


def test_consistent_supervision_trains_laterals_without_the_fusion(features):
    neck = AugFPN(SHAPES, out_channels=8)
    sum(p.square().sum() for name, p in neck(features).items() if name.startswith("lateral_")).backward()
    learns = {name.split(".")[0] for name, p in neck.named_parameters() if p.grad is not None}
    assert learns == {"lateral"}


class Features(Backbone):
    """A bottom-up network that gives the same features for every image."""

    def __init__(self, features):
        super().__init__()
        self.features = features

    def forward(self, images):
        return self.features

    def output_shape(self):
        return SHAPES


def test_backbone_names_its_auxiliary_pyramids(features):
    backbone = AugFPN(SHAPES, out_channels=8, supervision_weight=0.5).wrap(Features(features))
    assert backbone.auxiliary_pyramids == {"lateral_": 0.5}
    assert {name for name in backbone(torch.zeros(2, 3, 8, 8)) if name.startswith("lateral_")}
    without = AugFPN(SHAPES, out_channels=8, supervision_weight=0).wrap(Features(features))
    assert without.auxiliary_pyramids == {}
    assert list(without(torch.zeros(2, 3, 8, 8))) == list(without.output_shape())


@pytest.mark.parametrize("ratios", [[], ["a"], [0.0, 0.5], [1.5]])
def test_impossible_ratios_are_refused(ratios):
    with pytest.raises(ValueError, match=r"ratios is \[.*\]; it must be one or more numbers above 0 and at most 1"):
        AugFPN(SHAPES, out_channels=8, ratios=ratios)
