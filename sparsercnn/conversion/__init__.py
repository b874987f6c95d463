"""Weights of other code bases under the names of this one: functions from state dict to state dict, by source."""

from collections.abc import Callable, Mapping

from torch import Tensor

from .effdet import from_effdet

Converter = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], dict[str, Tensor]]
"""Makes of a foreign state dict, and of that of the model to fill, the latter with the foreign values.

It raises an `InputError` where the two do not belong together. What it returns is checked by its caller.
"""

CONVERTERS: dict[str, Converter] = {"effdet": from_effdet}
"""The converter of each source."""

__all__ = ["CONVERTERS", "Converter", "from_effdet"]
