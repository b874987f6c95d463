"""Per-image annotations or predictions with named fields of equal length."""

import itertools
import warnings
from typing import Any

import torch


class Instances:
    """The instances of one image: any number of fields, each with one entry per instance.

    Fields are attributes: `instances.gt_boxes = Boxes(...)`, `instances.scores`, and the whole can be indexed like a
    tensor: `instances[instances.scores > 0.5]`. Names that start with an underscore are not fields.
    """

    def __init__(self, image_size: tuple[int, int], **kwargs: Any):
        """
        Args:
            image_size: (height, width) in pixels of the image that the coordinates refer to.
            kwargs: fields to set.
        """
        self._image_size = image_size
        self._fields: dict[str, Any] = {}
        for name, value in kwargs.items():
            self.set(name, value)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self._image_size

    def __setattr__(self, name: str, val: Any) -> None:
        if name.startswith("_"):
            super().__setattr__(name, val)
        else:
            self.set(name, val)

    def __getattr__(self, name: str) -> Any:
        if name == "_fields" or name not in self._fields:
            raise AttributeError(f"Cannot find field '{name}' in the given Instances!")
        return self._fields[name]

    def set(self, name: str, value: Any) -> None:
        """Set a field. Its length must be that of the others, if there are any."""
        with warnings.catch_warnings(record=True):  # len() of a tensor warns while tracing
            length = len(value)
        if len(self._fields):
            assert len(self) == length, f"Adding a field of length {length} to a Instances of length {len(self)}"
        self._fields[name] = value

    def has(self, name: str) -> bool:
        """Whether the field exists."""
        return name in self._fields

    def remove(self, name: str) -> None:
        """Delete a field."""
        del self._fields[name]

    def get(self, name: str) -> Any:
        """The field of this name."""
        return self._fields[name]

    def get_fields(self) -> dict[str, Any]:
        """All fields by name. Changing the dict changes the instances."""
        return self._fields

    def to(self, *args: Any, **kwargs: Any) -> "Instances":
        """New instances whose fields went through `to(device)` as far as they have it."""
        ret = Instances(self._image_size)
        for name, value in self._fields.items():
            ret.set(name, value.to(*args, **kwargs) if hasattr(value, "to") else value)
        return ret

    def __getitem__(self, item: int | slice | torch.Tensor) -> "Instances":
        """The chosen instances, with all their fields.

        Raises:
            IndexError: an int beyond the ends.
        """
        if type(item) is int:
            if item >= len(self) or item < -len(self):
                raise IndexError("Instances index out of range!")
            item = slice(item, None, len(self))
        ret = Instances(self._image_size)
        for name, value in self._fields.items():
            ret.set(name, value[item])
        return ret

    def __len__(self) -> int:
        for value in self._fields.values():
            return value.__len__()  # unlike len(), this may stay symbolic while tracing
        raise NotImplementedError("Empty Instances does not support __len__!")

    def __iter__(self):
        raise NotImplementedError("`Instances` object is not iterable!")

    @staticmethod
    def cat(instance_lists: list["Instances"]) -> "Instances":
        """Concatenate instances of one image size that have the same fields.

        Raises:
            ValueError: a field that is neither a tensor, nor a list, nor has a `cat` of its own.
        """
        assert all(isinstance(i, Instances) for i in instance_lists)
        assert len(instance_lists) > 0
        first = instance_lists[0]
        if len(instance_lists) == 1:
            return first
        if not isinstance(first.image_size, torch.Tensor):  # a tensor while tracing, not comparable then
            assert all(i.image_size == first.image_size for i in instance_lists)
        ret = Instances(first.image_size)
        for name, example in first._fields.items():
            ret.set(name, _concatenate([i.get(name) for i in instance_lists], example))
        return ret

    def __str__(self) -> str:
        height, width = self._image_size
        fields = ", ".join(f"{name}: {value}" for name, value in self._fields.items())
        return f"Instances(num_instances={len(self)}, image_height={height}, image_width={width}, fields=[{fields}])"

    __repr__ = __str__


def _concatenate(values: list[Any], example: Any) -> Any:
    if isinstance(example, torch.Tensor):
        return torch.cat(values, dim=0)
    if isinstance(example, list):
        return list(itertools.chain(*values))
    if hasattr(type(example), "cat"):
        return type(example).cat(values)
    raise ValueError(f"Unsupported type {type(example)} for concatenation")
