"""Anchors: boxes of several sizes and shapes at every cell of every feature map.

Ren et al., Faster R-CNN, NeurIPS 2015, section 3.1.1.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, move_device_like
from detectron2.structures import Boxes
from detectron2.utils.registry import Registry

ANCHOR_GENERATOR_REGISTRY = Registry("ANCHOR_GENERATOR")
ANCHOR_GENERATOR_REGISTRY.__doc__ = """
Registry of callables `(cfg, input_shape: list[ShapeSpec]) -> nn.Module` that make boxes on a grid for each feature map.
"""


class BufferList(nn.Module):
    """A list of tensors that move with the model but are not part of its state dict.

    Args:
        buffers: the tensors.
    """

    def __init__(self, buffers: Sequence[Tensor]) -> None:
        super().__init__()
        for i, buffer in enumerate(buffers):
            self.register_buffer(str(i), buffer, persistent=False)

    def __len__(self) -> int:
        return len(self._buffers)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._buffers.values())


@ANCHOR_GENERATOR_REGISTRY.register()
class DefaultAnchorGenerator(nn.Module):
    """At each cell, one anchor for every pair of a size and an aspect ratio.

    Args:
        sizes: square roots of the anchors' areas in pixels, a list for each feature map; one list for all if there is
            one, or if the numbers are not nested.
        aspect_ratios: height / width of the anchors, given like `sizes`.
        strides: stride of each feature map in pixels.
        offset: center of the anchors of the first cell, in strides, in [0, 1): 0.5 is the middle of the cell.
    """

    box_dim: torch.jit.Final[int] = 4

    @configurable
    def __init__(
        self,
        *,
        sizes: Sequence[Sequence[float]] | Sequence[float],
        aspect_ratios: Sequence[Sequence[float]] | Sequence[float],
        strides: list[int],
        offset: float = 0.5,
    ) -> None:
        super().__init__()
        self.strides = strides
        sizes = _one_list_per_map(sizes, len(strides), "sizes")
        aspect_ratios = _one_list_per_map(aspect_ratios, len(strides), "aspect_ratios")
        self.cell_anchors = BufferList(
            [self.generate_cell_anchors(s, a).float() for s, a in zip(sizes, aspect_ratios, strict=True)]
        )
        assert 0.0 <= offset < 1.0, offset
        self.offset = offset

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict:
        return {
            "sizes": cfg.MODEL.ANCHOR_GENERATOR.SIZES,
            "aspect_ratios": cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS,
            "strides": [shape.stride for shape in input_shape],
            "offset": cfg.MODEL.ANCHOR_GENERATOR.OFFSET,
        }

    @property
    @torch.jit.unused
    def num_anchors(self) -> list[int]:
        """Anchors at each cell of each feature map."""
        return [len(anchors) for anchors in self.cell_anchors]

    @property
    @torch.jit.unused
    def num_cell_anchors(self) -> list[int]:
        """Another name of `num_anchors`."""
        return self.num_anchors

    def generate_cell_anchors(
        self,
        sizes: Sequence[float] = (32, 64, 128, 256, 512),
        aspect_ratios: Sequence[float] = (0.5, 1, 2),
    ) -> Tensor:
        """Anchors of one cell, centered at the origin.

        Args:
            sizes: square roots of their areas in pixels.
            aspect_ratios: height / width.

        Returns:
            (len(sizes) * len(aspect_ratios), 4) xyxy in pixels, size by size.
        """
        anchors = []
        for size in sizes:
            for aspect_ratio in aspect_ratios:
                width = math.sqrt(size**2 / aspect_ratio)
                height = aspect_ratio * width
                anchors.append([-width / 2, -height / 2, width / 2, height / 2])
        return torch.tensor(anchors)

    def forward(self, features: list[Tensor]) -> list[Boxes]:
        """Anchors of every feature map.

        Args:
            features: feature maps, in the order of `strides`; only their last two dimensions, (H, W), matter.

        Returns:
            H * W * num_anchors absolute boxes for each, cell by cell in rows. They may lie outside of the image.
        """
        # TorchScript knows named_buffers, but neither buffers nor __iter__ of a module.
        cell_anchors = [buffer[1] for buffer in self.cell_anchors.named_buffers()]
        anchors = []
        for feature, stride, cell in zip(features, self.strides, cell_anchors):  # noqa: B905
            centers = _grid_centers(feature.shape[-2], feature.shape[-1], stride, self.offset, cell)
            anchors.append((centers[:, None] + cell[None]).reshape(-1, 4))
        return [Boxes(x) for x in anchors]


def _grid_centers(height: int, width: int, stride: int, offset: float, like: Tensor) -> Tensor:
    """(height * width, 4) of (x, y, x, y), row by row, on the device of `like`."""
    xs = torch.arange(offset * stride, width * stride, step=stride, dtype=torch.float32)
    ys = torch.arange(offset * stride, height * stride, step=stride, dtype=torch.float32)
    y, x = torch.meshgrid(move_device_like(ys, like), move_device_like(xs, like), indexing="ij")
    x, y = x.reshape(-1), y.reshape(-1)
    return torch.stack((x, y, x, y), dim=1)


def _one_list_per_map(
    params: Sequence[Sequence[float]] | Sequence[float], num_maps: int, name: str
) -> Sequence[Sequence[float]]:
    assert isinstance(params, Sequence), f"{name} in anchor generator has to be a list! Got {params}."
    assert len(params), f"{name} in anchor generator cannot be empty!"
    if not isinstance(params[0], Sequence):
        return [params] * num_maps
    if len(params) == 1:
        return list(params) * num_maps
    assert len(params) == num_maps, (
        f"Got {name} of length {len(params)} in anchor generator, but the number of input features is {num_maps}!"
    )
    return params


def build_anchor_generator(cfg: CfgNode, input_shape: list[ShapeSpec]) -> nn.Module:
    """Build `cfg.MODEL.ANCHOR_GENERATOR.NAME` for feature maps of the given shapes."""
    return ANCHOR_GENERATOR_REGISTRY.get(cfg.MODEL.ANCHOR_GENERATOR.NAME)(cfg, input_shape)
