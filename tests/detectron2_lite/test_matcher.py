"""Matching of predictions to ground truth by thresholds, and balanced sampling."""

import pytest
import torch
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.sampling import subsample_labels

QUALITY = torch.tensor([[0.15, 0.45, 0.2, 0.6], [0.3, 0.65, 0.05, 0.1], [0.05, 0.4, 0.25, 0.4]])


def test_labels_follow_the_thresholds():
    matches, labels = Matcher([0.3, 0.62], [0, -1, 1])(QUALITY)
    assert matches.tolist() == [1, 1, 2, 0] and matches.dtype == torch.int64
    assert labels.tolist() == [-1, 1, 0, -1] and labels.dtype == torch.int8


def test_low_quality_matches_give_every_ground_truth_a_prediction():
    matches, labels = Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True)(QUALITY)
    assert matches.tolist() == [1, 1, 2, 0]
    # Columns 1 and 3 are equally good for the third ground truth.
    assert labels.tolist() == [-1, 1, 0, 1]


def test_no_ground_truth_makes_everything_background():
    matches, labels = Matcher([0.5], [0, 1])(torch.zeros(0, 3))
    assert matches.tolist() == [0, 0, 0] and labels.tolist() == [0, 0, 0]


def test_a_threshold_belongs_to_the_label_above():
    _, labels = Matcher([0.5], [0, 1])(torch.tensor([[0.5, 0.4999]]))
    assert labels.tolist() == [1, 0]


def test_arguments_are_checked_and_not_changed():
    thresholds = [0.3, 0.7]
    Matcher(thresholds, [0, -1, 1])
    assert thresholds == [0.3, 0.7]
    for wrong in (([0.7, 0.3], [0, -1, 1]), ([0.5], [0, 2]), ([0.5], [0]), ([0.0], [0, 1])):
        with pytest.raises(AssertionError):
            Matcher(*wrong)
    with pytest.raises(AssertionError):
        Matcher([0.5], [0, 1])(torch.tensor([[-0.1]]))


@pytest.mark.parametrize(
    "num_pos, num_neg, expected", [(100, 100, (5, 15)), (2, 100, (2, 18)), (100, 3, (5, 3)), (0, 0, (0, 0))]
)
def test_sample_is_balanced_and_filled_with_negatives(num_pos, num_neg, expected):
    labels = torch.cat([torch.full((num_pos,), 3), torch.full((num_neg,), 80), torch.full((7,), -1)])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    pos, neg = subsample_labels(labels, 20, 0.25, bg_label=80)
    assert (len(pos), len(neg)) == expected
    assert (labels[pos] == 3).all() and (labels[neg] == 80).all()
    assert len(set(pos.tolist())) == len(pos) and len(set(neg.tolist())) == len(neg)
