"""What tests of detectors share: random boxes, and a comparison of instances."""

import torch
from torch import Tensor
from torch.testing import assert_close

from ..structures import Boxes, Instances

__all__ = ["assert_instances_allclose", "random_boxes"]


def random_boxes(num_boxes: int, max_coord: float = 100, device: str | torch.device = "cpu") -> Tensor:
    """(num_boxes, 4) float xyxy: corners from 1 to max_coord / 2, sides from 1 to max_coord / 2."""
    boxes = torch.rand(num_boxes, 4, device=device) * (max_coord * 0.5)
    boxes.clamp_(min=1.0)  # without area a box has no overlap with itself
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def assert_instances_allclose(
    input: Instances, other: Instances, *, rtol: float = 1e-5, msg: str = "", size_as_tensor: bool = False
) -> None:
    """Fail if two `Instances` differ in image size, in the names of their fields or in the values of one.

    Args:
        input: to be compared with `other`. Boxes and floating-point tensors must be close, others equal.
        other: see `input`.
        rtol: relative to the largest absolute value of the field.
        msg: comes first in the message of a failure.
        size_as_tensor: whether image sizes may be tensors, as traced models return them.

    Raises:
        AssertionError: they differ.
    """
    message = msg or "two Instances differ"
    sizes = [tuple(map(int, x.image_size)) if size_as_tensor else x.image_size for x in (input, other)]
    if sizes[0] != sizes[1]:
        raise AssertionError(f"{message}: image_size is {sizes[0]} and {sizes[1]}")
    fields, others = input.get_fields(), other.get_fields()
    if sorted(fields) != sorted(others):
        raise AssertionError(f"{message}: fields are {sorted(fields)} and {sorted(others)}")
    for name, value in fields.items():
        _assert_close(value, others[name], rtol, f"{message}: field {name}")


def _assert_close(a: object, b: object, rtol: float, message: str) -> None:
    if isinstance(a, Boxes) and isinstance(b, Boxes):
        a, b = a.tensor, b.tensor
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        raise ValueError(f"{message}: {type(a).__name__} and {type(b).__name__} cannot be compared")
    largest = float(b.abs().max()) if b.is_floating_point() and b.numel() else 0.0
    assert_close(a, b, rtol=0, atol=rtol * largest, msg=lambda found: f"{message}\n{found}")
