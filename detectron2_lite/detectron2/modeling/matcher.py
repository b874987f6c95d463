"""Assignment of every predicted box to at most one ground-truth box.

Ren et al., Faster R-CNN, NeurIPS 2015, section 3.1.2.
"""

import torch

from detectron2.layers import nonzero_tuple


# TorchScript compiles this class; that is why its loops and lists are so plain.
class Matcher:
    """Matches each prediction to its best ground truth, and labels it by how good that match is.

    With thresholds [0.3, 0.7] and labels [0, -1, 1], predictions whose best quality is below 0.3 are labeled 0
    (background), those in [0.3, 0.7) -1 (ignored), and the others 1 (foreground).

    Args:
        thresholds: increasing limits between the labels; the first is positive.
        labels: one more than thresholds; each is -1, 0 or 1.
        allow_low_quality_matches: also label 1 the predictions that are the best one for some ground truth, however
            bad.
    """

    def __init__(self, thresholds: list[float], labels: list[int], allow_low_quality_matches: bool = False):
        thresholds = thresholds[:]
        assert thresholds[0] > 0
        thresholds.insert(0, -float("inf"))
        thresholds.append(float("inf"))
        assert all(low <= high for low, high in zip(thresholds[:-1], thresholds[1:], strict=True))
        assert all(label in (-1, 0, 1) for label in labels)
        assert len(labels) == len(thresholds) - 1
        self.thresholds = thresholds
        self.labels = labels
        self.allow_low_quality_matches = allow_low_quality_matches

    def __call__(self, match_quality_matrix):
        """
        Args:
            match_quality_matrix: (M, N) quality, for example IoU, between M ground truths and N predictions; not
                negative.

        Returns:
            (N,) int64 index in [0, M) of the ground truth of each prediction, and its (N,) int8 label. Without
            ground truth every index is 0 and every label the first of `labels`.
        """
        assert match_quality_matrix.dim() == 2
        if match_quality_matrix.numel() == 0:
            num_predictions = match_quality_matrix.size(1)
            matches = match_quality_matrix.new_full((num_predictions,), 0, dtype=torch.int64)
            labels = match_quality_matrix.new_full((num_predictions,), self.labels[0], dtype=torch.int8)
            return matches, labels

        assert torch.all(match_quality_matrix >= 0)
        quality, matches = match_quality_matrix.max(dim=0)
        match_labels = matches.new_full(matches.size(), 1, dtype=torch.int8)
        for label, low, high in zip(self.labels, self.thresholds[:-1], self.thresholds[1:]):  # noqa: B905
            match_labels[(quality >= low) & (quality < high)] = label
        if self.allow_low_quality_matches:
            self.set_low_quality_matches_(match_labels, match_quality_matrix)
        return matches, match_labels

    def set_low_quality_matches_(self, match_labels, match_quality_matrix):
        """Label 1, in place, every prediction that no other one beats for some ground truth (ties included)."""
        best_per_ground_truth, _ = match_quality_matrix.max(dim=1)
        _, predictions = nonzero_tuple(match_quality_matrix == best_per_ground_truth[:, None])
        match_labels[predictions] = 1
