"""Predictions that are no numbers: taken out of the results, counted and reported."""

import logging

import torch
from detectron2.utils.logger import log_first_n
from torch import Tensor

# Broken weights would otherwise write a line for every picture of an evaluation.
REPORTS = 3


def take_out_broken(logits: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Turn predictions with an infinite or NaN number into boxes without area and of the lowest score.

    A box that breaks in an early stage stays broken in all later ones, so that looking at the last is enough.

    Args:
        logits: (B, N, K) of the last stage.
        boxes: (B, N, 4) absolute xyxy.

    Returns:
        Logits and boxes, and how many of the B·N were broken: a scalar on the device, for `report_broken`.
    """
    # An infinite logit is a certain score, and no fault.
    is_broken = ~boxes.isfinite().all(-1) | logits.isnan().any(-1)
    logits = logits.masked_fill(is_broken[..., None], torch.finfo(logits.dtype).min)
    return logits, boxes.masked_fill(is_broken[..., None], 0), is_broken.sum()


def report_broken(broken: Tensor, total: int) -> None:
    """Warn of broken predictions; the host waits for the count, so call it where the results are there already.

    Args:
        broken: see `take_out_broken`.
        total: of how many predictions.
    """
    if count := int(broken):
        log_first_n(
            logging.WARNING,
            f"{count} of {total} predicted boxes or scores are infinite or NaN and count as nothing found. The weights "
            f"are broken, perhaps by a training that diverged, or the precision is too low. (Said {REPORTS} times at "
            "most.)",
            n=REPORTS,
            name=__name__,
        )
