"""3×3 convolutions with a quarter of the multiplications.

Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016: F(4×4, 3×3). A 6×6 tile d of the input
and a filter g give a 4×4 tile of the output, Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A. For all tiles and channels together the
products in the middle are 36 matrix products. In float32 the rounding errors are a few times those of a direct sum.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

INPUT_TRANSFORM = [  # Bᵀ
    [4, 0, -5, 0, 1, 0],
    [0, -4, -4, 1, 1, 0],
    [0, 4, -4, -1, 1, 0],
    [0, -2, -1, 2, 1, 0],
    [0, 2, -1, -2, 1, 0],
    [0, 4, 0, -5, 0, 1],
]
FILTER_TRANSFORM = [  # G
    [1 / 4, 0, 0],
    [-1 / 6, -1 / 6, -1 / 6],
    [-1 / 6, 1 / 6, -1 / 6],
    [1 / 24, 1 / 12, 1 / 6],
    [1 / 24, -1 / 12, 1 / 6],
    [0, 0, 1],
]
OUTPUT_TRANSFORM = [  # Aᵀ
    [1, 1, 1, 1, 1, 0],
    [0, 1, -1, 2, -2, 0],
    [0, 1, 1, 4, 4, 0],
    [0, 1, -1, 8, -8, 1],
]
TILES_AT_ONCE = 256
"""Few enough that what the steps hand on stays in the processor's cache."""


def transform_filters(weight: Tensor) -> Tensor:
    """Filters (O, C, 3, 3) to the (36, C, O) that `winograd_conv2d` takes."""
    transform = torch.tensor(FILTER_TRANSFORM, dtype=torch.float64)
    filters = torch.einsum("ia,ocab,jb->ijco", transform, weight.double(), transform)
    return filters.flatten(0, 1).to(weight.dtype).contiguous()


@torch.library.custom_op("sparsercnn::winograd_conv2d", mutates_args=())
def winograd_conv2d(x: Tensor, filters: Tensor, bias: Tensor) -> Tensor:
    """A 3×3 convolution of stride 1 and padding 1, (B, C, H, W) to (B, O, H, W), both channels-last.

    Args:
        filters: (36, C, O) from `transform_filters`.
        bias: (O,).
    """
    batch, _, height, width = x.shape
    rows, columns = -(-height // 4), -(-width // 4)
    # Zeros around the image, and at its end as far as the last tile reaches.
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 4 * columns - width + 1, 1, 4 * rows - height + 1))
    tiles = padded.unfold(1, 6, 4).unfold(2, 6, 4)  # (B, rows, columns, C, 6, 6)
    output = x.new_empty(batch, rows, 4, columns, 4, len(bias))
    step = max(1, TILES_AT_ONCE // columns)
    # Allocated once: what is allocated anew for each step, the system has to zero first.
    workspace = x.new_empty(2, 36 * min(step, rows) * columns * max(filters.shape[1:]))
    for image, result in zip(tiles, output, strict=True):
        for some, target in zip(image.split(step), result.split(step), strict=True):
            torch.add(_convolve(some, filters, workspace), bias, out=target)
    output = output.view(batch, 4 * rows, 4 * columns, -1)[:, :height, :width]
    return output.contiguous().permute(0, 3, 1, 2)


@winograd_conv2d.register_fake
def _(x: Tensor, filters: Tensor, bias: Tensor) -> Tensor:
    batch, _, height, width = x.shape
    return x.new_empty(batch, height, width, len(bias)).permute(0, 3, 1, 2)


def _convolve(tiles: Tensor, filters: Tensor, workspace: Tensor) -> Tensor:
    """Tiles (rows, columns, C, 6, 6) to (rows, 4, columns, 4, O), which lies in the workspace."""
    rows, columns, channels = tiles.shape[:3]
    count, out_channels = rows * columns, filters.shape[2]
    here, there = workspace
    _part(here, 6, 6, rows, columns, channels).copy_(tiles.permute(3, 4, 0, 1, 2))
    _transform(INPUT_TRANSFORM, here, there, count * channels)
    torch.bmm(_part(here, 36, count, channels), filters, out=_part(there, 36, count, out_channels))
    _transform(OUTPUT_TRANSFORM, there, here, count * out_channels)
    return _part(there, 4, 4, rows, columns, out_channels).permute(2, 0, 3, 1, 4)


def _transform(matrix: list[list[int]], tiles: Tensor, workspace: Tensor, count: int) -> None:
    """M t Mᵀ for each tile t of the (6, 6, count) in `tiles`, in place: (rows of M, rows of M, count)."""
    transform = tiles.new_tensor(matrix)
    size = len(matrix)
    torch.bmm(transform.expand(6, -1, -1), _part(tiles, 6, 6, count), out=_part(workspace, 6, size, count))
    torch.mm(transform, _part(workspace, 6, size * count), out=_part(tiles, size, size * count))


def _part(memory: Tensor, *shape: int) -> Tensor:
    """The first elements of a one-dimensional tensor, in that shape."""
    return memory[: math.prod(shape)].view(shape)
