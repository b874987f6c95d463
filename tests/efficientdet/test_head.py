"""What the levels share in the class and box nets, what they do not, and in which order the results come."""

import torch
import torch.nn.functional as F
from torch import nn

from efficientdet import EfficientDetHead

SIZES = ((4, 6), (2, 3))


def head(**options) -> EfficientDetHead:
    torch.manual_seed(0)
    return EfficientDetHead(channels=8, num_levels=2, num_anchors=3, num_classes=5, **{"depth": 2, **options})


def levels() -> list[torch.Tensor]:
    return [torch.randn(2, 8, *size) for size in SIZES]


def randomize(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5) if name.endswith("running_var") else tensor.normal_(0, 0.3)
    return module.eval()


def separable(conv: nn.Module, x: torch.Tensor) -> torch.Tensor:
    x = F.conv2d(x, conv.depthwise.weight, padding=1, groups=8)
    return F.conv2d(x, conv.pointwise.weight, conv.pointwise.bias)


def test_formula():
    """Convolutions are those of all levels, norms those of the level; anchors come cell by cell in rows."""
    built = randomize(head())
    maps = levels()
    logits, deltas = built(maps)
    for i, x in enumerate(maps):
        for tower, last, found in (
            (built.class_tower, built.class_logits, logits[i]),
            (built.box_tower, built.box_deltas, deltas[i]),
        ):
            y = x
            for conv, norm in zip(tower.convs, tower.norms[i], strict=True):
                y = separable(conv, y)
                mean, variance, weight, bias = (
                    t.view(-1, 1, 1) for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
                )
                y = (y - mean) / (variance + 1e-3).sqrt() * weight + bias
                y = y * y.sigmoid()
            y = separable(last, y)
            numbers = found.shape[-1]
            for a in range(3):
                of_anchor = y[:, a * numbers : (a + 1) * numbers]
                torch.testing.assert_close(found[:, a::3], of_anchor.flatten(2).transpose(1, 2))
    assert [x.shape for x in logits] == [(2, 72, 5), (2, 18, 5)]
    assert [x.shape for x in deltas] == [(2, 72, 4), (2, 18, 4)]


def test_norms_are_of_one_level_each():
    built = head().train()
    built(levels())
    first, second = (norms[0].running_mean for norms in built.class_tower.norms)
    assert not torch.equal(first, second)
    norms = [m for m in built.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 2 * 2 * 2 and {(m.eps, m.momentum) for m in norms} == {(1e-3, 0.01)}


def test_every_class_starts_with_the_prior_score():
    built = head(prior_prob=0.02)
    scores = [x.sigmoid() for x in built([torch.zeros_like(x) for x in levels()])[0]]
    assert all(torch.allclose(x, torch.tensor(0.02)) for x in scores)


def test_without_norm_convolutions_have_biases():
    built = head(norm="")
    assert built.class_tower.convs[0].pointwise.bias is not None
    assert head().class_tower.convs[0].pointwise.bias is None
    assert not any(isinstance(m, nn.BatchNorm2d) for m in built.modules())
