"""A detector that stops after some of its refinement stages, for a smaller budget."""

import copy

from torch import nn

from ..errors import InputError
from ..modeling.detector import SparseRCNN


def with_stages(model: nn.Module, stages: int) -> SparseRCNN:
    """A detector with the first so many refinement stages of `model`, which keeps its own and shares its weights.

    Raises:
        InputError: the model has no refinement stages, or not so many.
    """
    if not isinstance(model, SparseRCNN):
        raise InputError(f"TEST.STAGES is for SparseRCNN, not {type(model).__name__}")
    count = len(model.head.head_series)
    if not 1 <= stages <= count:
        raise InputError(f"TEST.STAGES asks for {stages} refinement stages; the model has 1 to {count}")
    shorter = copy.copy(model)
    shorter._modules = dict(model._modules)
    head = copy.copy(model.head)
    head._modules = dict(head._modules)
    head.head_series = model.head.head_series[:stages]
    shorter.head = head
    return shorter
