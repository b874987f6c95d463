"""What the first refinement stage computes without looking at the image, computed once for all images.

Its objects are the learned proposal features. On a CPU their attention and dynamic matrices are a good part of a stage.
"""

from collections.abc import Callable

from torch import Tensor, nn

from ..modeling.head import DynamicHead


def remember_first_stage(head: DynamicHead) -> None:
    """Let the first stage of a head remember its attention and its dynamic matrices, in place.

    Both are computed again when their weights or the proposal features change. That is what PyTorch counts as a change:
    not what is written through `tensor.data`.
    """
    first = head.head_series[0]
    if sum(stage is first for stage in head.head_series) > 1:
        return  # later stages with the same weights have other objects
    interaction = first.inst_interact
    vars(first)["attend"] = Remembered(first.attend, [first.self_attn, first.norm1])
    interaction.dynamic_layer = Remembered(interaction.dynamic_layer.forward, [interaction.dynamic_layer])


class Remembered(nn.Module):
    """A function of (B, N, C) objects that remembers what it gave for the last ones, if all images have the same.

    Args:
        function: (B, N, C) to (B, N, D), each image for itself.
        layers: whose parameters it uses.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], layers: list[nn.Module]):
        super().__init__()
        self.function = function
        self.layers = nn.ModuleList(layers)
        self._state: list[tuple] | None = None
        self._result: Tensor | None = None

    def forward(self, objects: Tensor) -> Tensor:
        if len(objects) > 1 and objects.stride(0) != 0:
            return self.function(objects)
        state = [_state(tensor) for tensor in (objects, *self.layers.parameters())]
        if state != self._state:
            self._state, self._result = state, self.function(objects[:1])
        return self._result.expand(len(objects), -1, -1)


def _state(tensor: Tensor) -> tuple:
    """Changes when the tensor is replaced, moved, cast or written to."""
    version = 0 if tensor.is_inference() else tensor._version
    return tensor.data_ptr(), tensor.dtype, tensor.device, version
