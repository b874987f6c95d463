"""Validation pictures: as many as asked for, whole groups, every class, and by the seed."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sparsercnn.data.split import choose_validation


@given(st.lists(st.integers(0, 8), min_size=10, max_size=40), st.integers(0, 5))
def test_groups_are_never_divided_and_the_share_is_not_exceeded(numbers, seed):
    groups = np.unique(numbers, return_inverse=True)[1]
    counts = np.ones((len(groups), 2), int)
    chosen = choose_validation(groups, counts, 0.3, seed)
    for number in set(groups.tolist()):
        assert len(set(chosen[groups == number].tolist())) == 1
    assert chosen.sum() <= max(1, round(0.3 * len(groups)))


def test_the_same_seed_gives_the_same_split_and_another_one_another():
    counts = np.random.default_rng(0).integers(0, 5, (100, 3))
    first, again, other = (choose_validation(np.arange(100), counts, 0.2, seed) for seed in (1, 1, 2))
    assert first.sum() == 20 and (first == again).all() and (first != other).any()


def test_a_class_of_two_objects_is_in_both():
    counts = np.zeros((50, 2), int)
    counts[:, 0] = 1
    counts[[3, 40], 1] = 1
    for seed in range(5):
        chosen = choose_validation(np.arange(50), counts, 0.2, seed)
        assert counts[chosen, 1].sum() == 1
