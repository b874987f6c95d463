"""A model made fast for training, with the same parameters, names in checkpoints, losses and gradients."""

from collections.abc import Callable

import torch
from torch import nn

from .pooling_gradients import share_pooling_gradients
from .processor import has_amx
from .training_convolution import use_winograd_in_training


def use_channels_last(model: nn.Module) -> None:
    """Lay out the weights of convolutions, in place, as CPUs and the tensor cores of GPUs prefer: channels last.

    Convolutions take images in the layout of their weights, and so do the feature maps that follow.
    """
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # documented, but not in its types


PARTS: dict[str, Callable[[nn.Module], None]] = {
    "channels-last layout": use_channels_last,
    "pooling gradients in one buffer": share_pooling_gradients,
    "Winograd": use_winograd_in_training,
}
"""What `prepare_for_training` does, part by part; `benchmarks.train_step --ablate` leaves out one at a time."""


def prepare_for_training(model: nn.Module) -> None:
    """Give a detector, in place, the layout and on a CPU the kernels with which it trains faster.

    Losses and gradients are the same but for rounding.
    """
    for prepare in PARTS.values():
        prepare(model)


def fastest_precision(device_type: str) -> torch.dtype:
    """The precision in which training on a device takes the least time: what `SOLVER.AMP.PRECISION auto` stands for.

    bfloat16 on GPUs that have it, else float16 there. On CPUs bfloat16 with AMX, else float32: with AVX512-bf16 alone
    some gain little and some much (docs/accuracy.md), which this does not tell apart.

    Args:
        device_type: "cuda" or "cpu".
    """
    if device_type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.bfloat16 if has_amx() else torch.float32
