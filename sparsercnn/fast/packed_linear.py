"""Linear layers for inference on CPUs, whose weights lie as oneDNN's products read them."""

import torch
from torch import Tensor, nn

from ..modeling.head import DynamicHead


class PackedLinear(nn.Module):
    """A linear layer that rearranges its weight once, not in every call.

    Args:
        layer: with a bias; its weights are taken as they are now.
        rows: of the input, about; other numbers work too.
    """

    def __init__(self, layer: nn.Linear, rows: int):
        super().__init__()
        self.dtype = layer.weight.dtype
        self.rows = rows
        # What is arranged for a kernel is no state to save or load.
        self.register_buffer("weight", layer.weight.detach(), persistent=False)
        self.register_buffer("bias", layer.bias.detach(), persistent=False)
        self._pack()

    def _pack(self) -> None:
        self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight.contiguous(), self.rows)

    def __getstate__(self) -> dict:
        """Copies and pickles hold plain weights: packed ones can be in neither."""
        return self.__dict__ | {"_buffers": self._buffers | {"weight": self.weight.to_dense()}}

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self._pack()

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) to (..., O)."""
        return torch.ops.mkldnn._linear_pointwise(x.to(self.dtype), self.weight, self.bias, "none", [], "")


def pack_linear_layers(head: DynamicHead, rows: int) -> None:
    """Replace the large linear layers of refinement stages, in place, for a CPU that `has_onednn`.

    Args:
        head: dynamic layers that are no `nn.Linear` any more stay as they are.
        rows: objects that each layer usually sees.
    """
    for stage in dict.fromkeys(head.head_series):
        for owner, name in (
            (stage.inst_interact, "dynamic_layer"),
            (stage.inst_interact, "out_layer"),
            (stage, "linear1"),
            (stage, "linear2"),
        ):
            if type(layer := getattr(owner, name)) is nn.Linear:
                setattr(owner, name, PackedLinear(layer, rows))
