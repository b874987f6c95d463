import random

import numpy as np
import torch

from sparsercnn.randomness import Purpose, random_numbers, seed_generators


def draw():
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_numbers_follow_from_seed_purpose_and_position():
    drawn = []
    for key in [(1, Purpose.SAMPLE, 7), (1, Purpose.SAMPLE, 8), (2, Purpose.SAMPLE, 7), (1, Purpose.MODEL, 7)]:
        with random_numbers(*key):
            drawn.append(draw())
        seed_generators(*key)
        assert draw() == drawn[-1]
    assert len(set(drawn)) == 4


def test_what_is_outside_goes_on_as_if_nothing_had_been_drawn():
    seed_generators(0, Purpose.MODEL, 0)
    expected = [draw(), draw()]
    seed_generators(0, Purpose.MODEL, 0)
    first = draw()
    with random_numbers(5, Purpose.SAMPLE, 1):
        draw()
    assert [first, draw()] == expected
