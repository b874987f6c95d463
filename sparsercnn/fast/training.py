"""A model made fast for training, with the same parameters, names in checkpoints, losses and gradients."""

import torch
from torch import nn

from .pooling_gradients import share_pooling_gradients
from .training_convolution import use_winograd_in_training


def prepare_for_training(model: nn.Module) -> None:
    """Give a detector the channels-last layout and, on a CPU, the kernels of this package, in place.

    Losses and gradients are the same but for rounding.
    """
    # Convolutions take images in the layout of their weights, and so do the feature maps that follow.
    model.to(memory_format=torch.channels_last)
    if next(model.parameters()).device.type == "cpu":
        share_pooling_gradients(model)
        use_winograd_in_training(model)
