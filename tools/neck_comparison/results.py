"""What finished trainings say: APs with intervals, and differences to the reference with corrected p-values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sparsercnn.evaluation.coco_matches import CocoMatches, average_precision
from sparsercnn.evaluation.significance import LEVEL, Estimate, draw_images, estimate, holm

from .training import Training

# Draws of images and seeds. The least p-value there can be is 2 / (REPLICATES + 1), small enough for a hundred
# comparisons.
REPLICATES = 5_000


@dataclass(frozen=True)
class Score:
    """AP of one neck at one budget.

    Attributes:
        values: (S,) of each seed.
        resampled: (S, B) of each seed, for each of B draws of images.
    """

    values: np.ndarray
    resampled: np.ndarray

    @classmethod
    def of(cls, trainings: Sequence[Training], iterations: int) -> Score:
        """The AP of some trainings, which differ in the seed, after so many iterations."""
        values, resampled = [], []
        for training in trainings:
            matches = CocoMatches.load(training.folder / f"matches_{iterations}.npz")
            draws = draw_images(matches.objects.shape[2], REPLICATES)
            values.append(average_precision(matches)[0])
            resampled.append(average_precision(matches, draws))
        return cls(np.array(values), np.array(resampled))

    def interval(self) -> Estimate:
        """Mean over the seeds, with its interval."""
        return estimate(self.values, self.resampled)

    def minus(self, other: Score) -> Estimate:
        """Mean difference to another neck, pairs of the same seed and the same images, with its interval."""
        return estimate(self.values - other.values, self.resampled - other.resampled)


@dataclass(frozen=True)
class Comparison:
    """A neck against the reference.

    Attributes:
        difference: of the APs.
        p_value: corrected for the number of comparisons.
    """

    difference: Estimate
    p_value: float

    @property
    def verdict(self) -> str:
        """What may be said: "better", "worse" or "no conclusion"."""
        if self.p_value >= 1 - LEVEL or self.difference.low <= 0 <= self.difference.high:
            return "no conclusion"
        return "better" if self.difference.mean > 0 else "worse"


def compare(
    scores: Mapping[str, Mapping[str, Score]], reference: str, others: Sequence[str]
) -> dict[str, dict[str, Comparison]]:
    """All comparisons with the reference, their p-values corrected together (Holm).

    Args:
        scores: {budget: {neck: score}}.
        reference: name of a neck.
        others: names of the necks to be compared with it.

    Returns:
        {budget: {neck: comparison}}.
    """
    differences = {
        (budget, name): of_budget[name].minus(of_budget[reference])
        for budget, of_budget in scores.items()
        for name in others
    }
    corrected = holm([difference.p_value for difference in differences.values()])
    found: dict[str, dict[str, Comparison]] = {budget: {} for budget in scores}
    for ((budget, name), difference), p_value in zip(differences.items(), corrected, strict=True):
        found[budget][name] = Comparison(difference, p_value)
    return found
