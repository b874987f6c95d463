"""Helpers for tests of detectors."""

import io

import torch
from torch import Tensor, nn

from detectron2.structures import Boxes, Instances

__all__ = ["assert_instances_allclose", "random_boxes", "reload_script_model"]


def random_boxes(num_boxes: int, max_coord: float = 100, device: str = "cpu") -> Tensor:
    """(num_boxes, 4) xyxy boxes with sides of at least 1, inside a square of `max_coord`."""
    boxes = (torch.rand(num_boxes, 4, device=device) * (max_coord * 0.5)).clamp_(min=1.0)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def assert_instances_allclose(
    input: Instances, other: Instances, *, rtol: float = 1e-5, msg: str = "", size_as_tensor: bool = False
) -> None:
    """Assert that two instances have the same image size and fields, and nearly the same values.

    Args:
        rtol: tolerance relative to the largest value; for boxes, to 100 pixels.
        msg: prefix of the error message.
        size_as_tensor: whether image sizes are tensors, as after tracing.
    """
    sizes = torch.as_tensor(input.image_size), torch.as_tensor(other.image_size)
    same_size = torch.equal(*sizes) if size_as_tensor else input.image_size == other.image_size
    prefix = f"{msg}\n" if msg else ""
    assert same_size, f"{prefix}image_size is {input.image_size} vs. {other.image_size}!"
    fields, other_fields = (sorted(i.get_fields()) for i in (input, other))
    assert fields == other_fields, f"{prefix}fields are {fields} vs {other_fields}!"
    for name in fields:
        a, b = input.get(name), other.get(name)
        if isinstance(a, Boxes):
            close = torch.allclose(a.tensor, b.tensor, atol=100 * rtol)
        elif isinstance(a, Tensor) and a.is_floating_point():
            close = torch.allclose(a, b, atol=rtol * float(a.abs().max()) if a.numel() else 0.0)
        else:
            close = bool(torch.as_tensor(a).equal(torch.as_tensor(b)))
        assert close, f"{prefix}'{name}' differs: {a} vs. {b}"


def reload_script_model(module: nn.Module) -> nn.Module:
    """Save a scripted module and load it again."""
    buffer = io.BytesIO()
    torch.jit.save(module, buffer)
    buffer.seek(0)
    return torch.jit.load(buffer)
