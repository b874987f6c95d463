"""Merging the detections of several views, with results computed by hand."""

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from torch import nn
from torch.testing import assert_close

from sparsercnn import load_config
from sparsercnn.errors import InputError
from sparsercnn.evaluation.test_time_augmentation import SparseRCNNWithTTA, check_scale_ranges, keep_sizes
from sparsercnn.evaluation.voting import soft_vote, soft_vote_by_class


def boxes(*rows):
    return torch.tensor(rows, dtype=torch.float32).view(-1, 4)


def test_a_group_becomes_its_mean_by_score_and_doubles_fade():
    # IoU 0.8, 80 of 100: one group.
    merged, scores = soft_vote(boxes([0, 0, 10, 8], [0, 0, 10, 10]), torch.tensor([0.5, 0.75]))
    assert_close(merged, boxes([0, 0, 10, 9.2], [0, 0, 10, 8]))  # (10 · 0.75 + 8 · 0.5) / 1.25
    assert_close(scores, torch.tensor([0.75, 0.5 * 0.2]))


def test_a_faded_double_below_a_twentieth_goes():
    merged, scores = soft_vote(boxes([0, 0, 10, 8], [0, 0, 10, 10]), torch.tensor([0.2, 0.6]))
    assert_close(merged, boxes([0, 0, 10, 9.5]))
    assert_close(scores, torch.tensor([0.6]))


def test_boxes_that_overlap_less_stay_as_they_are():
    alone = boxes([0, 0, 10, 10], [0, 0, 10, 6], [50, 50, 50, 60])  # IoU 0.6; no area
    merged, scores = soft_vote(alone, torch.tensor([0.9, 0.8, 0.01]))
    assert_close(merged, alone)
    assert_close(scores, torch.tensor([0.9, 0.8, 0.01]))


def test_the_best_detection_decides_who_belongs_to_its_group():
    # The middle one overlaps both by 0.8 and is taken by the best, so that the last, which overlaps the best by 0.64
    # only, stands alone.
    rows = boxes([0, 0, 10, 100], [0, 0, 10, 80], [0, 0, 10, 64])
    merged, scores = soft_vote(rows, torch.tensor([0.8, 0.4, 0.6]))
    assert_close(merged, boxes([0, 0, 10, (100 * 0.8 + 80 * 0.4) / 1.2], [0, 0, 10, 80], [0, 0, 10, 64]))
    assert_close(scores, torch.tensor([0.8, 0.4 * 0.2, 0.6]))


def test_classes_do_not_merge_and_the_best_comes_first():
    found = Instances((20, 20), pred_boxes=Boxes(boxes([0, 0, 8, 8], [0, 0, 8, 8], [0, 0, 8, 8])))
    found.scores, found.pred_classes = torch.tensor([0.3, 0.9, 0.4]), torch.tensor([1, 0, 1])
    merged = soft_vote_by_class(found)
    assert_close(merged.scores, torch.tensor([0.9, 0.4]))
    assert merged.pred_classes.tolist() == [0, 1]
    assert len(soft_vote_by_class(found[:0])) == 0


def test_sizes_at_the_ends_of_a_range_are_outside():
    found = Instances((99, 99), pred_boxes=Boxes(boxes([0, 0, 4, 4], [0, 0, 5, 5], [0, 0, 8, 2], [0, 0, 8, 8])))
    assert keep_sizes(found, 4, 8).pred_boxes.tensor.tolist() == [[0, 0, 5, 5]]


class Finder(nn.Module):
    """Finds in each view one box, at a fixed place of the original image of 40×80, with the score of its turn."""

    def __init__(self, original, scores):
        super().__init__()
        self.original, self.scores, self.sizes = torch.tensor(original), list(scores), []

    def forward(self, inputs):
        height, width = inputs[0]["image"].shape[1:]
        self.sizes.append((height, width))
        box = self.original * torch.tensor([width / 80, height / 40] * 2)
        if len(self.sizes) % 2 == 0:  # the mirror image
            box = torch.stack([width - box[2], box[1], width - box[0], box[3]])
        found = Instances((height, width), pred_boxes=Boxes(box[None]))
        found.scores, found.pred_classes = torch.tensor([self.scores[len(self.sizes) - 1]]), torch.tensor([2])
        return [{"instances": found}]


def tta_config(*options):
    words = ["TEST.AUG.MIN_SIZES", (40, 80), "TEST.AUG.SCALE_RANGES", [[0, 30], [10, 99]], *options]
    return load_config(options=words)


def detect(cfg, model):
    image = torch.from_numpy(np.zeros((3, 40, 80), np.uint8))
    (output,) = SparseRCNNWithTTA(cfg, model)([{"image": image, "height": 40, "width": 80}])
    return output["instances"]


def test_views_agree_on_one_box_in_the_original_image():
    model = Finder([10.0, 10.0, 30.0, 30.0], [0.5, 0.6, 0.7, 0.8])
    found = detect(tta_config(), model)
    assert model.sizes == [(40, 80), (40, 80), (80, 160), (80, 160)]
    assert_close(found.pred_boxes.tensor, boxes([10, 10, 30, 30]), rtol=0, atol=1e-3)
    assert_close(found.scores, torch.tensor([0.8]))
    assert found.pred_classes.tolist() == [2]


def test_the_range_of_a_view_is_that_of_its_size_mirrored_or_not():
    small = [10.0, 10.0, 15.0, 15.0]  # side 5: outside of the second range
    assert_close(detect(tta_config(), Finder(small, [0.5, 0.6, 0.9, 0.8])).scores, torch.tensor([0.6]))
    unfiltered = tta_config("TEST.AUG.SCALE_FILTER", False)
    assert_close(detect(unfiltered, Finder(small, [0.5, 0.6, 0.9, 0.8])).scores, torch.tensor([0.9]))


def test_without_voting_the_best_view_survives():
    cfg = tta_config("TEST.AUG.CVPODS_TTA", False)
    assert_close(detect(cfg, Finder([10.0, 10.0, 15.0, 15.0], [0.5, 0.6, 0.9, 0.8])).scores, torch.tensor([0.9]))


def test_published_defaults():
    aug = load_config().TEST.AUG
    assert len(aug.MIN_SIZES) == len(aug.SCALE_RANGES) == 13
    assert aug.CVPODS_TTA and aug.SCALE_FILTER and aug.MIN_SIZES[:3] == (400, 500, 600)
    assert not load_config(options=["MODEL.META_ARCHITECTURE", "GeneralizedRCNN"]).TEST.AUG.CVPODS_TTA


def test_ranges_must_suffice(caplog):
    with pytest.raises(InputError, match="1 ranges for 2"):
        check_scale_ranges((400, 500), [[0, 96]])
    with pytest.raises(InputError, match=r"SCALE_RANGES is \[\[96, 0\]\]"):
        check_scale_ranges((400,), [[96, 0]])
    check_scale_ranges((400,), [[0, 96], [0, 9]])
    assert "first ones" in caplog.text


def test_a_model_that_only_proposes_is_refused():
    class Proposer(nn.Module):
        def forward(self, inputs):
            return [{"proposals": Instances((1, 1))}]

    with pytest.raises(InputError, match="proposals"):
        detect(tta_config(), Proposer())
