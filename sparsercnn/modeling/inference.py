"""A model as it is used when nothing is learned: in evaluation mode, without gradients, in a chosen precision."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

T = TypeVar("T")


class InferenceModel(nn.Module):
    """Runs a model in evaluation mode and in inference mode.

    Args:
        model: a detector or a backbone.
        device_type: "cpu" or "cuda", where the model is.
        dtype: precision of convolutions and matrix products; other than float32 it runs under autocast.
    """

    def __init__(self, model: nn.Module, device_type: str, dtype: torch.dtype):
        super().__init__()
        self.model = model
        self.device_type = device_type
        self.dtype = dtype
        self.eval()

    def train(self, mode: bool = True) -> "InferenceModel":
        """Changes nothing: it always is in evaluation mode."""
        return super().train(False)

    def forward(self, inputs: Any) -> Any:
        """What the model returns for `inputs`: a list of dicts for a detector, images for a backbone."""
        return self.run(nn.Module.__call__, inputs)

    def run(self, function: Callable[[Any, Any], T], inputs: Any) -> T:
        """`function(model, inputs)`, the model being the prepared one, in inference mode and its precision."""
        autocast = torch.autocast(self.device_type, self.dtype, enabled=self.dtype != torch.float32)
        with torch.inference_mode(), autocast:
            return function(self.model, inputs)
