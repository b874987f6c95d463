"""Linear layers for inference on CPUs, whose weights lie as oneDNN's products read them."""

from typing import Any

import torch
from torch import Tensor, nn

from ..modeling.head import DynamicConv, DynamicHead, RefinementStage


def pack_linear_layers(head: DynamicHead, rows: int) -> None:
    """Replace the large linear layers of refinement stages, in place, for a CPU with oneDNN.

    Args:
        head: not prepared yet.
        rows: objects that each layer usually sees.
    """
    for stage in dict.fromkeys(head.head_series):
        assert isinstance(stage, RefinementStage)
        stage.inst_interact = PackedDynamicConv(stage.inst_interact, rows)
        for name in ("linear1", "linear2"):
            layer = getattr(stage, name)
            setattr(stage, name, PackedLinear(layer.weight, layer.bias, rows))


class PackedLinear(nn.Module):
    """A linear layer that rearranges its weight once, not in every call.

    Args:
        weight: (O, I), taken as it is now.
        bias: (O,).
        rows: of the input, about; other numbers work too.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, rows: int):
        super().__init__()
        self.dtype = weight.dtype
        self.rows = rows
        # What is arranged for a kernel is no state to save or load.
        self.register_buffer("weight", weight.detach(), persistent=False)
        self.register_buffer("bias", bias.detach(), persistent=False)
        self._pack()

    def _pack(self) -> None:
        self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight.contiguous(), self.rows)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles hold plain weights: packed ones can be in neither."""
        return self.__dict__ | {"_buffers": self._buffers | {"weight": self.weight.to_dense()}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._pack()

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) to (..., O)."""
        return torch.ops.mkldnn._linear_pointwise(x.to(self.dtype), self.weight, self.bias, "none", [], "")


class PackedDynamicConv(DynamicConv):
    """`DynamicConv` that makes each of the two matrices by itself: together they outgrow what the C library reuses.

    Args:
        conv: its layers are taken over.
        rows: objects that each layer usually sees.
    """

    def __init__(self, conv: DynamicConv, rows: int):
        nn.Module.__init__(self)
        self.dim_dynamic = conv.dim_dynamic
        self.norm1, self.norm2, self.norm3 = conv.norm1, conv.norm2, conv.norm3
        weights, biases = conv.dynamic_layer.weight.chunk(2), conv.dynamic_layer.bias.chunk(2)
        self.first, self.second = (PackedLinear(w, b, rows) for w, b in zip(weights, biases, strict=True))
        last = PackedLinear(conv.out_layer.weight, conv.out_layer.bias, rows)
        self.out_layer = last  # type: ignore[assignment]  # no `nn.Linear`, but it computes the same

    def matrices(self, objects: Tensor) -> tuple[Tensor, Tensor]:
        objects = objects.flatten(0, 1)
        first = self.first(objects).unflatten(-1, (-1, self.dim_dynamic))
        return first, self.second(objects).unflatten(-1, (self.dim_dynamic, -1))
