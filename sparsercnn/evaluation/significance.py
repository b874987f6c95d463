"""What a comparison of detectors over few seeds and few images can tell: intervals, p-values, and their correction.

Two things vary: the seed of a training, and the images of the test. Both are resampled. What is compared is paired:
detectors share the seeds, and are tested on the same images.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95
"""Chance that an interval covers the true value."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and what is known of it.

    Attributes:
        mean: over the seeds, on all images.
        low, high: the interval of level `LEVEL`.
        p_value: of the hypothesis that the true value is 0, two-sided.
    """

    mean: float
    low: float
    high: float
    p_value: float


def draw_images(images: int, replicates: int, seed: int = 0) -> np.ndarray:
    """(replicates, images) how often each image is in a test set of the same size that is drawn with replacement."""
    return np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=replicates)


def estimate(values: np.ndarray, resampled: np.ndarray, seed: int = 0) -> Estimate:
    """Mean over seeds, with the interval of a bootstrap over seeds and images.

    Every replicate draws images, and seeds, with replacement. As bootstrap intervals of few values are too narrow, the
    part of the seeds is widened to that of Student's t interval (Hesterberg, What Teachers Should Know About the
    Bootstrap, 2015, section 5.3: the expanded percentile interval). Replicates are centered at the mean, because AP of
    resampled images is biased.

    Args:
        values: (S,) of each seed, two seeds or more; for two detectors the difference of each seed.
        resampled: (S, B) the same for each of B draws of images, of which all seeds have the same.
        seed: of the draws of seeds.
    """
    seeds, replicates = resampled.shape
    drawn = np.random.default_rng(seed).integers(seeds, size=(replicates, seeds))
    of_images = resampled.mean(0)
    of_seeds = np.take_along_axis(resampled.T, drawn, axis=1).mean(1) - of_images
    replicate = values.mean() + (of_images - of_images.mean()) + expansion(seeds) * of_seeds
    low, high = np.quantile(replicate, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    # One is added so that no finite number of replicates can say that something is impossible.
    tail = min((replicate <= 0).sum(), (replicate >= 0).sum()) + 1
    return Estimate(float(values.mean()), float(low), float(high), float(min(1.0, 2 * tail / (replicates + 1))))


def expansion(count: int) -> float:
    """How many times too narrow the percentile interval of a mean of `count` values is."""
    quantile = (1 + LEVEL) / 2
    return stats.t.ppf(quantile, count - 1) / stats.norm.ppf(quantile) * np.sqrt(count / (count - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for how many there are, so that the chance of any false finding stays at the level.

    Holm, A Simple Sequentially Rejective Multiple Test Procedure, 1979: the smallest of n times n, the next times
    n − 1, …, none smaller than the one before, and at most 1.
    """
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected
