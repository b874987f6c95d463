"""3×3 convolutions with a quarter of the multiplications.

Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016: F(4×4, 3×3). A 6×6 tile d of the input
and a filter g give a 4×4 tile of the output, Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A. For all tiles and channels together the
products in the middle are 36 matrix products. In float32 the rounding errors are a few times those of a direct sum.
"""

import math

import torch
from torch import Tensor

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
TILE = 4
"""Pixels of the output along each side of a tile."""
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
    all_tiles = x.new_ones(batch, -(-height // TILE), -(-width // TILE)).nonzero()
    rows = x.new_empty(batch * height * width + 1, len(bias))
    convolve_tiles(x, all_tiles, filters, bias, rows)
    return rows[:-1].view(batch, height, width, -1).permute(0, 3, 1, 2)


@winograd_conv2d.register_fake
def _(x: Tensor, filters: Tensor, bias: Tensor) -> Tensor:
    batch, _, height, width = x.shape
    return x.new_empty(batch, height, width, len(bias)).permute(0, 3, 1, 2)


def convolve_tiles(x: Tensor, tiles: Tensor, filters: Tensor, bias: Tensor, out: Tensor) -> None:
    """`winograd_conv2d` for some tiles only.

    Args:
        x: (B, C, H, W), channels-last.
        tiles: (n, 3) image, row and column, counted in tiles of 4×4 pixels.
        filters, bias: as above.
        out: at least B·H·W + 1 rows of O channels. Row (b·H + y)·W + x is that of a pixel; the last one takes what lies
            outside the image.
    """
    rows_of_x = x.permute(0, 2, 3, 1).flatten(0, 2)
    channels, out_channels = filters.shape[1:]
    # Allocated once: what is allocated anew for each step, the system has to zero first.
    here, there = x.new_empty(2, 36 * min(TILES_AT_ONCE, len(tiles)) * max(channels, out_channels))
    for some in tiles.split(TILES_AT_ONCE):
        count = len(some)
        rows, inside = window_rows(some * torch.tensor([1, TILE, TILE]), TILE + 2, x.shape)
        windows = torch.index_select(rows_of_x, 0, rows.flatten(), out=_part(here, 36 * count, channels))
        windows.index_fill_(0, (~inside.flatten()).nonzero()[:, 0], 0)
        _transform(INPUT_TRANSFORM, here, there, count * channels)
        torch.bmm(_part(here, 36, count, channels), filters, out=_part(there, 36, count, out_channels))
        _transform(OUTPUT_TRANSFORM, there, here, count * out_channels)
        targets = torch.where(inside, rows, len(out) - 1)[1:-1, 1:-1].flatten()
        out.index_copy_(0, targets, _part(there, len(targets), out_channels).add_(bias))


def window_rows(corners: Tensor, size: int, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Where to find the pixels of square windows in a map of (B, C, H, W) that is laid out as (B·H·W, C).

    Args:
        corners: (n, 3) image, row and column of a pixel; its window starts one row above it and one column before.
        size: pixels along each side of a window.

    Returns:
        The (size, size, n) rows, and whether there is such a pixel; if not, the row is that of the nearest one.
    """
    image, row, column = corners.t()
    height, width = shape[2:]
    steps = torch.arange(-1, size - 1)
    row, column = row + steps[:, None, None], column + steps[:, None]
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return (image * height + row.clamp(0, height - 1)) * width + column.clamp(0, width - 1), inside


def _transform(matrix: list[list[int]], tiles: Tensor, workspace: Tensor, count: int) -> None:
    """M t Mᵀ for each tile t of the (6, 6, count) in `tiles`, in place: (rows of M, rows of M, count)."""
    transform = tiles.new_tensor(matrix)
    size = len(matrix)
    torch.bmm(transform.expand(6, -1, -1), _part(tiles, 6, 6, count), out=_part(workspace, 6, size, count))
    torch.mm(transform, _part(workspace, 6, size * count), out=_part(tiles, size, size * count))


def _part(memory: Tensor, *shape: int) -> Tensor:
    """The first elements of a one-dimensional tensor, in that shape."""
    return memory[: math.prod(shape)].view(shape)
