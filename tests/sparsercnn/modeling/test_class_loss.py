"""What scores are taught."""

import pytest
import torch
from torch.testing import assert_close

from sparsercnn import load_config
from sparsercnn.errors import InputError
from sparsercnn.modeling.class_loss import FocalLoss, MatchabilityAwareLoss, VarifocalLoss, build_class_loss

QUALITY_LOSSES = [VarifocalLoss(), MatchabilityAwareLoss()]


def one(loss, score, label, overlap):
    logit = torch.tensor(score, dtype=torch.float64).logit().requires_grad_()
    value = loss(logit, torch.tensor(float(label)).double(), torch.tensor(overlap).double())
    value.backward()
    return value.detach(), logit.grad


def log(x):
    return torch.tensor(x, dtype=torch.float64).log()


def test_formulas():
    assert_close(one(VarifocalLoss(), 0.3, 1, 0.6)[0], -0.6 * (0.6 * log(0.3) + 0.4 * log(0.7)))
    assert_close(one(VarifocalLoss(), 0.3, 0, 0.0)[0], -0.75 * 0.3**2 * log(0.7))
    q = 0.6**1.5
    assert_close(one(MatchabilityAwareLoss(), 0.3, 1, 0.6)[0], -(q * log(0.3) + (1 - q) * log(0.7)))
    assert_close(one(MatchabilityAwareLoss(), 0.3, 0, 0.0)[0], -(0.3**1.5) * log(0.7))
    assert_close(one(FocalLoss(), 0.3, 1, 0.6)[0].double(), -0.25 * 0.7**2 * log(0.3))


@pytest.mark.parametrize(("loss", "best"), [(VarifocalLoss(), 0.6), (MatchabilityAwareLoss(), 0.6**1.5)])
def test_a_score_rests_where_it_tells_the_overlap(loss, best):
    assert one(loss, best, 1, 0.6)[1].abs() < 1e-6
    assert one(loss, best - 0.1, 1, 0.6)[1] < 0 < one(loss, best + 0.1, 1, 0.6)[1]
    assert one(loss, 0.3, 0, 0.0)[1] > 0


def test_only_matchability_corrects_a_confident_box_without_overlap():
    assert one(MatchabilityAwareLoss(), 0.9, 1, 0.01)[1] > 0.5
    assert one(VarifocalLoss(), 0.9, 1, 0.01)[1] < 0.01


def test_an_unknown_name():
    cfg = load_config()
    cfg.MODEL.SparseRCNN.CLASS_LOSS = "varifokal"
    with pytest.raises(InputError, match="CLASS_LOSS is 'varifokal'.* did you mean varifocal"):
        build_class_loss(cfg)
