"""A batch of images of different sizes in one padded tensor."""

from typing import Any

import torch
from torch import device
from torch.nn import functional as F

from detectron2.layers.wrappers import shapes_to_tensor


class ImageList:
    """Images padded at the right and the bottom to a common size.

    Attributes:
        tensor: (N, H, W) or (N, C, H, W).
        image_sizes: (height, width) of each image before padding. While tracing, each is a tensor of two numbers.
    """

    def __init__(self, tensor: torch.Tensor, image_sizes: list[tuple[int, int]]):
        self.tensor = tensor
        self.image_sizes = image_sizes

    def __len__(self) -> int:
        return len(self.image_sizes)

    def __getitem__(self, idx) -> torch.Tensor:
        """The image without its padding, (H, W) or (C, H, W)."""
        size = self.image_sizes[idx]
        return self.tensor[idx, ..., : size[0], : size[1]]

    @torch.jit.unused
    def to(self, *args: Any, **kwargs: Any) -> "ImageList":
        return ImageList(self.tensor.to(*args, **kwargs), self.image_sizes)

    @property
    def device(self) -> device:
        return self.tensor.device

    @staticmethod
    def from_tensors(
        tensors: list[torch.Tensor],
        size_divisibility: int = 0,
        pad_value: float = 0.0,
        padding_constraints: dict[str, int] | None = None,
    ) -> "ImageList":
        """Pad images to the largest height and width among them.

        Args:
            tensors: (H, W) or (C, H, W) each, with equal C.
            size_divisibility: height and width of the batch are rounded up to a multiple of this.
            pad_value: what to fill with.
            padding_constraints: may hold "size_divisibility", which overrides the argument, and "square_size", a side
                length that, if positive, makes every batch a square of it.
        """
        assert len(tensors) > 0
        assert isinstance(tensors, (list, tuple))
        for t in tensors:
            assert isinstance(t, torch.Tensor), type(t)
            assert t.shape[:-2] == tensors[0].shape[:-2], t.shape

        image_sizes = [(t.shape[-2], t.shape[-1]) for t in tensors]
        sizes = [shapes_to_tensor([size[0], size[1]]) for size in image_sizes]
        max_size = torch.stack(sizes).max(0).values
        if padding_constraints is not None:
            square_size = padding_constraints.get("square_size", 0)
            if square_size > 0:
                max_size = torch.full_like(max_size, square_size)
            size_divisibility = padding_constraints.get("size_divisibility", size_divisibility)
        if size_divisibility > 1:
            max_size = (max_size + (size_divisibility - 1)).div(size_divisibility, rounding_mode="floor")
            max_size = max_size * size_divisibility

        if not torch.jit.is_scripting() and torch.jit.is_tracing():
            # no int() and no copy into a slice: a traced graph must not remember the example's size
            return ImageList(_pad_and_stack(tensors, sizes, max_size, pad_value), sizes)
        height, width = int(max_size[0]), int(max_size[1])
        batch = tensors[0].new_full([len(tensors)] + list(tensors[0].shape[:-2]) + [height, width], pad_value)
        for i, t in enumerate(tensors):
            batch[i, ..., : t.shape[-2], : t.shape[-1]].copy_(t)
        return ImageList(batch, image_sizes)


@torch.jit.unused
def _pad_and_stack(
    tensors: list[torch.Tensor],
    sizes: list[torch.Tensor],
    max_size: torch.Tensor,
    pad_value: float,
) -> torch.Tensor:
    margins = [max_size - size for size in sizes]
    return torch.stack([F.pad(t, [0, m[1], 0, m[0]], value=pad_value) for t, m in zip(tensors, margins, strict=True)])
