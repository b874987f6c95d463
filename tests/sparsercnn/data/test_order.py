"""The order of samples: that of detectron2's samplers, and the same from wherever one begins."""

import itertools

import pytest
import torch
from detectron2.data.samplers import RandomSubsetTrainingSampler, RepeatFactorTrainingSampler, TrainingSampler

from sparsercnn.data import order

FACTORS = torch.tensor([1.0, 2.5, 1.2, 3.0, 1.7])
CASES = {
    "TrainingSampler": (order.shuffled(7), TrainingSampler(7, seed=3)),
    "RandomSubsetTrainingSampler": (
        order.shuffled_subset(10, 0.55, seed=3),
        RandomSubsetTrainingSampler(10, 0.55, seed_shuffle=3, seed_subset=3),
    ),
    "RepeatFactorTrainingSampler": (order.repeated(FACTORS), RepeatFactorTrainingSampler(FACTORS, seed=3)),
}


@pytest.mark.parametrize("name", CASES)
def test_the_stream_is_that_of_detectron2s_sampler(name):
    epoch, sampler = CASES[name]
    assert list(itertools.islice(order.indices(epoch, seed=3), 50)) == list(itertools.islice(sampler, 50))


def test_batches_are_consecutive_pieces_of_the_stream():
    batches = order.batches(order.indices(order.shuffled(7), 0), 4)
    joined = list(itertools.chain.from_iterable(itertools.islice(batches, 10)))
    assert joined == list(itertools.islice(order.indices(order.shuffled(7), 0), 40))


def test_a_grouped_batch_holds_one_group_and_comes_with_its_last_member():
    wide = [True, False, True, True, False]
    batches = order.batches(itertools.cycle(range(5)), 3, wide)
    assert list(itertools.islice(batches, 4)) == [[0, 2, 3], [1, 4, 1], [0, 2, 3], [0, 2, 3]]


def test_grouped_batches_lose_no_image_and_repeat_none_before_the_rest():
    wide = [i % 3 == 0 for i in range(12)]
    batches = order.batches(order.indices(order.shuffled(12), 5), 4, wide)
    seen = list(itertools.chain.from_iterable(itertools.islice(batches, 60)))
    counts = [seen.count(i) for i in range(12)]
    assert max(counts) - min(counts) <= 1
