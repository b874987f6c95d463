"""Averages of weights from which a training can be read off after any number of iterations."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

# Relative width of the average, as Karras et al. measure it (σ_rel = 0.1).
EXPONENT = 6.94


class PowerAverage:
    """Average of a model's weights with weights t**γ of iteration t, so that its width grows with the training.

    A training at a constant rate is then as good at any iteration as one that was planned to end there, which schedules
    that fall are not. Karras et al., Analyzing and Improving the Training Dynamics of Diffusion Models, CVPR 2024,
    section 3.1; Hägele et al., Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations, NeurIPS 2024.

    Args:
        model: whose trained parameters, and statistics of norms, are averaged.
    """

    def __init__(self, model: nn.Module):
        trained = [p for p in model.parameters() if p.requires_grad]
        norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.training]
        statistics = [x for norm in norms for x in (norm.running_mean, norm.running_var) if x is not None]
        self.current: list[Tensor] = [tensor.detach() for tensor in (*trained, *statistics)]
        self.average = [tensor.clone() for tensor in self.current]
        self.iterations = 0

    def update(self) -> None:
        """Take in the model after one more iteration."""
        self.iterations += 1
        keep = (1 - 1 / self.iterations) ** (EXPONENT + 1)
        torch._foreach_lerp_(self.average, self.current, 1 - keep)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model has the averages for weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        kept = [tensor.clone() for tensor in self.current]
        torch._foreach_copy_(self.current, self.average)
        torch._foreach_copy_(self.average, kept)
