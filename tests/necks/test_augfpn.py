import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone

from necks import FPN, AugFPN
from necks.augfpn import ResidualFeatureAugmentation

LEVELS = ["res2", "res3", "res4", "res5"]
SHAPES = {name: ShapeSpec(channels=4 * (i + 1), stride=2 ** (i + 2)) for i, name in enumerate(LEVELS)}


@pytest.fixture
def features() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    sizes = [(39, 51), (20, 26), (10, 13), (5, 7)]
    return {n: torch.randn(2, s.channels, *size) for (n, s), size in zip(SHAPES.items(), sizes, strict=True)}


def test_fusion_weights_sum_to_one_and_differ_between_pixels():
    augment = ResidualFeatureAugmentation(6, 8)
    contexts = augment.contexts(torch.randn(2, 6, 20, 30))
    weights = augment.weights(contexts)
    assert weights.shape == (2, 3, 20, 30)
    torch.testing.assert_close(weights.sum(1), torch.ones(2, 20, 30))
    assert weights.std(dim=(2, 3)).min() > 0


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


def test_augmentation_is_the_weighted_sum_of_contexts():
    augment = ResidualFeatureAugmentation(6, 8)
    x = torch.randn(2, 6, 21, 17)
    contexts = torch.stack(augment.contexts(x), dim=1)
    expected = (augment.weights(list(contexts.unbind(1))).unsqueeze(2) * contexts).sum(1)
    torch.testing.assert_close(augment(x), expected)


def test_without_augmentation_it_is_fpn(features):
    neck, fpn = AugFPN(SHAPES, out_channels=8, num_levels=5), FPN(SHAPES, out_channels=8, num_levels=5)
    fpn.load_state_dict({k: v for k, v in neck.state_dict().items() if not k.startswith("augment.")})
    assert not torch.equal(neck(features)["p2"], fpn(features)["p2"])
    for parameter in neck.augment.reduce.parameters():
        torch.nn.init.zeros_(parameter)
    for name, expected in fpn(features).items():
        torch.testing.assert_close(neck(features)[name], expected)


def test_auxiliary_pyramid_holds_the_laterals(features):
    neck = AugFPN(SHAPES, out_channels=8, num_levels=5)
    pyramid, [(weight, auxiliary)] = neck.forward_supervised(features)
    assert weight == 0.25
    assert list(pyramid) == list(auxiliary) == ["p2", "p3", "p4", "p5", "p6"]
    for name, expected in neck(features).items():
        torch.testing.assert_close(pyramid[name], expected)
        assert auxiliary[name].shape == expected.shape
    for lateral, (name, x) in zip(neck.lateral, features.items(), strict=True):
        torch.testing.assert_close(auxiliary[name.replace("res", "p")], lateral(x))


def test_consistent_supervision_trains_laterals_without_the_fusion(features):
    neck = AugFPN(SHAPES, out_channels=8)
    _, [(_, auxiliary)] = neck.forward_supervised(features)
    sum(p.square().sum() for p in auxiliary.values()).backward()
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


def test_backbone_offers_the_supervised_forward(features):
    backbone = AugFPN(SHAPES, out_channels=8, supervision_weight=0.5).wrap(Features(features))
    images = torch.zeros(2, 3, 156, 204)
    pyramid, [(weight, auxiliary)] = backbone.forward_supervised(images)
    assert weight == 0.5 and auxiliary.keys() == pyramid.keys()
    torch.testing.assert_close(pyramid, backbone(images))
    assert not hasattr(FPN(SHAPES, out_channels=8).wrap(Features(features)), "forward_supervised")
