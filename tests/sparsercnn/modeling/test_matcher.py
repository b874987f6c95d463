"""Several proposals for an object: how many, which, and when only one."""

import itertools

import pytest
import torch
from detectron2.structures import Boxes, Instances

from sparsercnn import HungarianMatcher, SetCriterion
from sparsercnn.modeling import matcher as matcher_module
from sparsercnn.modeling.matcher import DynamicKMatcher

SIZE = (64, 64)


def targets_of(*boxes):
    target = Instances(SIZE)
    target.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    target.gt_classes = torch.arange(len(boxes)) % 3
    return [target]


def random_case(stages=3, proposals=12, objects=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(objects + stages * proposals, 2, generator=generator) * 40
    boxes = torch.cat([corners, corners + 8 + 15 * torch.rand(corners.shape, generator=generator)], dim=1)
    logits = torch.randn(stages, 1, proposals, 3, generator=generator)
    return logits, boxes[objects:].view(stages, 1, proposals, 4), targets_of(*boxes[:objects].tolist())


def counts(pairs, objects):
    return torch.bincount(pairs[1], minlength=objects).tolist()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("proposals", "objects"), [(12, 3), (4, 3), (3, 3), (2, 3)])
def test_every_object_gets_a_proposal_of_its_own_as_long_as_there_are_enough(seed, proposals, objects):
    logits, boxes, targets = random_case(proposals=proposals, objects=objects, seed=seed)
    for (pairs,) in DynamicKMatcher()(logits, boxes, targets):
        assert len(set(pairs[0].tolist())) == len(pairs[0]) <= proposals
        assert len(set(pairs[1].tolist())) == min(proposals, objects)


def test_the_last_stage_is_one_to_one():
    logits, boxes, targets = random_case(proposals=60)
    (ours,), (plain,) = DynamicKMatcher()(logits, boxes, targets)[-1], HungarianMatcher()(logits, boxes, targets)[-1]
    assert torch.equal(torch.stack(ours), torch.stack(plain))
    assert max(counts(DynamicKMatcher(rise=0, last=True)(logits[-1:], boxes[-1:], targets)[0][0], 3)) > 1


def test_k_is_the_sum_of_overlaps_less_what_is_still_to_rise():
    box = [0.0, 0, 20, 20]
    half = [0.0, 0, 20, 10]
    boxes = torch.tensor([box, box, box, half, [40, 40, 60, 60], [40, 40, 50, 60]]).expand(4, 1, 6, 4)
    logits = torch.zeros(4, 1, 6, 3)
    stages = DynamicKMatcher()(logits, boxes, targets_of(box, [40, 40, 60, 60]))
    # Sums are 3.5 and 1.5; stages 0 to 2 are 3 to 1 steps of 0.5 before the last.
    assert [counts(pairs, 2) for (pairs,) in stages] == [[2, 1], [2, 1], [3, 1], [1, 1]]
    assert counts(DynamicKMatcher(candidates=2)(logits, boxes, targets_of(box))[2][0], 1) == [1]


def test_the_proposals_are_those_of_least_total_cost():
    """Against all assignments of six proposals to two objects with the same numbers of proposals."""
    logits, boxes, targets = random_case(stages=2, proposals=6, objects=2, seed=3)
    matcher = DynamicKMatcher(rise=-2.0)
    (proposals, objects) = matcher(logits, boxes, targets)[0][0]
    cost = matcher.costs(logits, boxes, targets)[0, 0]
    k = counts((proposals, objects), 2)
    assert sum(k) > 2
    best = min(
        sum(float(cost[p, 0]) for p in first) + sum(float(cost[p, 1]) for p in second)
        for first in itertools.combinations(range(6), k[0])
        for second in itertools.combinations(sorted(set(range(6)) - set(first)), k[1])
    )
    assert float(cost[proposals, objects].sum()) == pytest.approx(best)


def test_looking_for_cheap_proposals_first_changes_nothing(monkeypatch):
    logits, boxes, targets = random_case(proposals=200, objects=5)
    whole = DynamicKMatcher(last=True)(logits, boxes, targets)
    monkeypatch.setattr(matcher_module, "MANY_PROPOSALS", 20)
    for (ours,), (expected,) in zip(DynamicKMatcher(last=True)(logits, boxes, targets), whole, strict=True):
        assert torch.equal(torch.stack(ours), torch.stack(expected))


def test_losses_count_every_pair_of_a_stage_once():
    """With as many pairs in each stage the sums are those of the stages alone."""
    logits, boxes, targets = random_case(stages=3, proposals=30)
    criterion = SetCriterion(num_classes=3, matcher=DynamicKMatcher(rise=0))
    together = criterion(logits, boxes, targets)
    for stage in range(2):
        alone = SetCriterion(num_classes=3, matcher=DynamicKMatcher(rise=0, last=True))(
            logits[[stage]], boxes[[stage]], targets
        )
        for name, loss in alone.items():
            torch.testing.assert_close(together[f"{name}_{stage}"], loss)
