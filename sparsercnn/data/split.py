"""Splits a data set for training and validation so that nothing leaks and every class is in both."""

import numpy as np

# Random splits of which the one with the classes spread most evenly is taken.
ATTEMPTS = 64


def choose_validation(groups: np.ndarray, class_counts: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """(N,) bool: which pictures are for validation.

    Args:
        groups: (N,) int, for each picture the number of its group, from 0; a group is never divided.
        class_counts: (N, K) objects of each class in each picture.
        fraction: of the pictures, for validation.
        seed: the same seed gives the same split.
    """
    rng = np.random.default_rng(seed)
    sizes = np.bincount(groups)
    target = max(1, round(fraction * len(groups)))
    totals = np.maximum(class_counts.sum(0), 1)
    best, best_score = np.zeros(len(groups), bool), np.inf
    for _ in range(ATTEMPTS):
        chosen = _fill(rng.permutation(len(sizes)), sizes, target)[groups]
        shares = class_counts[chosen].sum(0) / totals
        # A class that is on one side alone counts more than any unevenness.
        lost = (shares == 0) | (shares == 1)
        score = lost.sum() + np.abs(np.append(shares, chosen.mean()) - fraction).mean()
        if score < best_score:
            best, best_score = chosen, score
    return best


def _fill(order: np.ndarray, sizes: np.ndarray, target: int) -> np.ndarray:
    """(G,) bool: groups in this order as long as they fit, so that their sizes make the target at most."""
    chosen = np.zeros(len(sizes), bool)
    room = target
    for number in order.tolist():
        if sizes[number] <= room:
            chosen[number] = True
            room -= sizes[number]
    return chosen
