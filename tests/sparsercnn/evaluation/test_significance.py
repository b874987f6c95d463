"""Intervals cover what they say, also with five seeds; p-values are uniform where there is nothing; Holm by hand."""

import numpy as np
import pytest
from scipy import stats

from sparsercnn.evaluation.significance import draw_images, estimate, expansion, holm

SEEDS, IMAGES, REPLICATES = 5, 60, 400


def simulate(effect: float, seed_noise: float, image_noise: float, trial: int) -> tuple[np.ndarray, np.ndarray]:
    """A metric that is a mean over images: each seed and each image add something of their own to the effect."""
    random = np.random.default_rng(trial)
    of_seeds = random.normal(0, seed_noise, (SEEDS, 1))
    of_images = random.normal(0, image_noise, (1, IMAGES))
    both = effect + of_seeds + of_images + random.normal(0, image_noise / 3, (SEEDS, IMAGES))
    weights = draw_images(IMAGES, REPLICATES, seed=trial)
    return both.mean(1), both @ weights.T / IMAGES


@pytest.mark.parametrize("seed_noise, image_noise", [(1.0, 0.5), (0.5, 6.0), (0.2, 8.0)])
def test_intervals_cover_the_truth(seed_noise, image_noise):
    trials = 400
    results = [estimate(*simulate(2.0, seed_noise, image_noise, trial)) for trial in range(trials)]
    covered = np.mean([r.low <= 2.0 <= r.high for r in results])
    # 0.95 within three standard errors of 400 trials.
    assert 0.917 < covered < 0.983
    assert all(r.low < r.mean < r.high for r in results)


def test_nothing_is_rarely_found():
    p = [estimate(*simulate(0.0, 0.5, 3.0, trial)).p_value for trial in range(400)]
    assert np.mean(np.array(p) < 0.05) < 0.083
    assert 0.4 < np.mean(p) < 0.6


def test_an_effect_is_found_and_the_interval_agrees_with_the_p_value():
    result = estimate(*simulate(5.0, 0.5, 3.0, 0))
    assert result.p_value == 2 / (REPLICATES + 1)
    for trial in range(50):
        result = estimate(*simulate(1.0, 0.5, 3.0, trial))
        if not 0.03 < result.p_value < 0.07:
            assert (result.p_value < 0.05) == (not result.low <= 0 <= result.high)


def test_with_seeds_alone_the_interval_is_students():
    values = np.array([1.0, 2.5, 3.0, 4.5, 4.0])
    result = estimate(values, np.repeat(values[:, None], 20_000, axis=1))
    low, high = stats.t.interval(0.95, 4, values.mean(), stats.sem(values))
    # The bootstrap distribution of five values has steps.
    assert result.low == pytest.approx(low, abs=0.12) and result.high == pytest.approx(high, abs=0.12)
    assert expansion(5) == pytest.approx(2.7764 / 1.95996 * 1.25**0.5, abs=1e-4)


def test_images_are_drawn_with_replacement():
    weights = draw_images(7, 1000, seed=3)
    assert weights.shape == (1000, 7) and (weights.sum(1) == 7).all()
    assert weights.var() == pytest.approx(6 / 7, abs=0.05)
    assert (draw_images(7, 1000, seed=3) == weights).all()


def test_holm_by_hand():
    # 0.01·4 = 0.04; 0.02·3 = 0.06; 0.03·2 = 0.06; 0.04·1 = 0.04, but not below the one before.
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
