"""Losses, gradients and weights that are infinite or not a number: found before they do harm."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import chain

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class NotFiniteError(FloatingPointError):
    """A loss or the gradient of a step is not finite; the step changed no weights.

    Attributes:
        what: what is not finite, for a message.
        losses: the values of all losses of the step.
        batches: the images that the step was computed from, by this process.
    """

    def __init__(self, what: str, losses: dict[str, float], batches: Sequence[list[dict]]):
        super().__init__(f"{what} not finite")
        self.what = what
        self.losses = losses
        self.batches = batches


class GradientNotFiniteError(FloatingPointError):
    """Raised by an optimizer instead of a step whose gradients are not finite."""


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether every number is finite. Reads each tensor once; integers always are."""
    by_device = defaultdict(list)
    for tensor in tensors:
        if tensor.is_floating_point() and tensor.numel():
            by_device[tensor.device].append(tensor)
    # The largest magnitude cannot overflow as a sum of squares can.
    largest = [torch._foreach_norm(same, float("inf")) for same in by_device.values()]
    return all(bool(torch.stack([norm.isfinite() for norm in norms]).all()) for norms in largest)


def training_state(model: nn.Module, optimizer: Optimizer) -> Iterable[Tensor]:
    """All tensors of the model and of the optimizer's state."""
    kept = (value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor))
    return chain(model.state_dict().values(), kept)
