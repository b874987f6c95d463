"""Balanced sampling of foreground and background."""

import torch
from torch import Tensor

from detectron2.layers import nonzero_tuple

__all__ = ["subsample_labels"]


def subsample_labels(
    labels: Tensor, num_samples: int, positive_fraction: float, bg_label: int
) -> tuple[Tensor, Tensor]:
    """Draw a random sample with at most a given share of positives.

    Args:
        labels: (N,); -1 is ignored, `bg_label` is negative, anything else positive.
        num_samples: size of the sample; less if there are not enough negatives to fill it.
        positive_fraction: at most this share of `num_samples` is positive; negatives fill up.
        bg_label: label of the background.

    Returns:
        Indices of the positives and of the negatives in the sample, in random order.
    """
    positive = nonzero_tuple((labels != -1) & (labels != bg_label))[0]
    negative = nonzero_tuple(labels == bg_label)[0]
    num_pos = min(positive.numel(), int(num_samples * positive_fraction))
    num_neg = min(negative.numel(), num_samples - num_pos)
    chosen_pos = torch.randperm(positive.numel(), device=positive.device)[:num_pos]
    chosen_neg = torch.randperm(negative.numel(), device=negative.device)[:num_neg]
    return positive[chosen_pos], negative[chosen_neg]
