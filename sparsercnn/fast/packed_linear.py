"""Linear layers for inference on CPUs, whose weights lie as oneDNN's products read them."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..modeling.head import DynamicLayer, RefinementStage


class PackedLinear(nn.Module):
    """A linear layer that rearranges its weight once, not in every call.

    Args:
        weight: (O, I), taken as it is now.
        bias: (O,).
        rows: of the input, about; other numbers work too.
    """

    def __init__(self, weight: Tensor, bias: Tensor, rows: int):
        super().__init__()
        self.dtype = weight.dtype
        self.rows = rows
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), rows)
        self.register_buffer("weight", packed, persistent=False)  # a state dict with it could not be saved
        self.register_buffer("bias", bias.detach())

    def __reduce__(self) -> tuple:
        """Copies and pickles hold plain weights: packed ones can be in neither."""
        return PackedLinear, (self.weight.to_dense(), self.bias, self.rows)

    @torch.compiler.disable  # it cannot trace weights in this form
    def forward(self, x: Tensor) -> Tensor:
        """(..., I) to (..., O)."""
        return torch.ops.mkldnn._linear_pointwise(x.to(self.dtype), self.weight, self.bias, "none", [], "")


class PackedDynamicLayer(nn.Module):
    """See `DynamicLayer`."""

    def __init__(self, layer: DynamicLayer, rows: int):
        super().__init__()
        self.first, self.second = (PackedLinear(*half, rows) for half in layer.halves())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.first(x), self.second(x)


def pack_linear_layers(stages: Iterable[RefinementStage], rows: int) -> None:
    """Replace the large linear layers of refinement stages, in place, for a CPU that `has_onednn`."""
    for stage in dict.fromkeys(stages):
        interaction = stage.inst_interact
        interaction.dynamic_layer = PackedDynamicLayer(interaction.dynamic_layer, rows)
        interaction.out_layer = _pack(interaction.out_layer, rows)
        stage.linear1, stage.linear2 = _pack(stage.linear1, rows), _pack(stage.linear2, rows)


def _pack(layer: nn.Linear, rows: int) -> PackedLinear:
    return PackedLinear(layer.weight, layer.bias, rows)
