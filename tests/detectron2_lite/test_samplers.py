"""Samplers for training and inference."""

import itertools
import math
import random
from unittest import mock

import numpy as np
import pytest
import torch
from detectron2.data.samplers import (
    InferenceSampler,
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)
from detectron2.utils import comm


def take(sampler, n):
    return list(itertools.islice(iter(sampler), n))


def of_process(make, rank, world_size, n):
    with (
        mock.patch.object(comm, "get_rank", lambda: rank),
        mock.patch.object(comm, "get_world_size", lambda: world_size),
    ):
        return take(make(), n)


def test_training_sampler_permutes_again_and_again():
    indices = take(TrainingSampler(10, seed=3), 30)
    passes = [indices[i : i + 10] for i in (0, 10, 20)]
    assert all(sorted(p) == list(range(10)) for p in passes)
    assert passes[0] != passes[1] != passes[2]


def test_training_sampler_is_torch_randperm_from_its_seed():
    g = torch.Generator().manual_seed(3)
    assert take(TrainingSampler(10, seed=3), 20) == [
        i for _ in range(2) for i in torch.randperm(10, generator=g).tolist()
    ]


def test_training_sampler_without_shuffling():
    assert take(TrainingSampler(3, shuffle=False), 7) == [0, 1, 2, 0, 1, 2, 0]


def test_training_sampler_takes_its_random_seed_when_made():
    def seed_all(seed):
        np.random.seed(seed)
        torch.manual_seed(seed)
        random.seed(seed)

    seed_all(42)
    first = take(TrainingSampler(30), 65)
    seed_all(42)
    sampler = TrainingSampler(30)
    seed_all(999)
    assert take(sampler, 65) == first


def test_processes_share_one_stream():
    whole = take(TrainingSampler(10, seed=3), 30)
    parts = [of_process(lambda: TrainingSampler(10, seed=3), rank, 3, 10) for rank in range(3)]
    assert [i for together in zip(*parts, strict=True) for i in together] == whole


def test_training_sampler_rejects_bad_sizes():
    with pytest.raises(TypeError, match="expects an int"):
        TrainingSampler(10.0)
    with pytest.raises(ValueError, match="expects a positive int"):
        TrainingSampler(0)


def test_random_subset():
    subset = set(take(RandomSubsetTrainingSampler(10, 0.45, seed_shuffle=1, seed_subset=2), 4))
    assert len(subset) == 4
    later = take(RandomSubsetTrainingSampler(10, 0.45, seed_shuffle=5, seed_subset=2), 40)
    assert set(later) == subset
    assert all(sorted(later[i : i + 4]) == sorted(subset) for i in range(0, 40, 4))


def test_repeat_factors():
    records = [
        {"annotations": [{"category_id": 0}, {"category_id": 1}]},
        {"annotations": [{"category_id": 0}]},
        {"annotations": []},
    ]
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(records, 0.5)
    assert torch.allclose(factors, torch.tensor([math.sqrt(3 / 2), 1.0, 1.0]))


def test_repeat_factor_sampler_repeats_by_the_factor():
    sampler = RepeatFactorTrainingSampler(torch.tensor([1.0, 3.0, 2.0]), shuffle=False)
    assert take(sampler, 12) == [0, 1, 1, 1, 2, 2] * 2

    often = take(RepeatFactorTrainingSampler(torch.tensor([1.0, 1.5]), seed=0), 5000)
    assert often.count(1) / often.count(0) == pytest.approx(1.5, abs=0.05)


@pytest.mark.parametrize(
    "size, world_size, expected",
    [
        (0, 5, [range(0)] * 5),
        (16, 2, [range(8), range(8, 16)]),
        (2, 3, [range(1), range(1, 2), range(0)]),
        (42, 4, [range(11), range(11, 22), range(22, 32), range(32, 42)]),
    ],
)
def test_inference_sampler_divides_into_ranges(size, world_size, expected):
    assert [InferenceSampler._get_local_indices(size, world_size, rank) for rank in range(world_size)] == expected


def test_inference_sampler_in_one_process():
    sampler = InferenceSampler(5)
    assert list(sampler) == [0, 1, 2, 3, 4] and len(sampler) == 5
