"""3×3 convolutions with a quarter of the multiplications.

Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016: F(4×4, 3×3). A 6×6 tile d of the input
and a filter g give a 4×4 tile of the output, Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A. For all tiles and channels together the
products in the middle are 36 matrix products. In float32 the rounding errors are a few times those of a direct sum,
those of gradients up to fifteen times.
"""

import math

import torch
from torch import Tensor, nn

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
TILES_AT_ONCE = 128
"""Few enough that what the steps hand on stays in the processor's cache."""
MIN_CHANNELS = 128
"""Below, transforming the tiles takes what the multiplications save."""


def suits_winograd(conv: nn.Conv2d) -> bool:
    """Whether `winograd_conv2d` computes this convolution, and in fewer operations."""
    ones = conv.stride == conv.padding == conv.dilation == (1, 1)
    is_wide = min(conv.in_channels, conv.out_channels) >= MIN_CHANNELS
    return ones and is_wide and conv.kernel_size == (3, 3) and conv.groups == 1 and conv.weight.dtype == torch.float32


def count_tiles(x: Tensor) -> int:
    """Tiles of a map (B, C, H, W)."""
    batch, _, height, width = x.shape
    return batch * -(-height // TILE) * -(-width // TILE)


def transform_filters(weight: Tensor) -> Tensor:
    """Filters (O, C, 3, 3) to the (36, C, O) that `winograd_conv2d` takes."""
    one_axis = weight.new_tensor(FILTER_TRANSFORM)
    taps = weight.permute(2, 3, 1, 0)  # (3, 3, C, O)
    with torch.autocast(weight.device.type, enabled=False):
        return (torch.kron(one_axis, one_axis) @ taps.flatten(2).flatten(0, 1)).unflatten(1, taps.shape[2:])


@torch.library.custom_op("sparsercnn::winograd_conv2d", mutates_args=())
def winograd_conv2d(x: Tensor, filters: Tensor, bias: Tensor | None) -> Tensor:
    """A 3×3 convolution of stride 1 and padding 1, (B, C, H, W) to (B, O, H, W), both channels-last.

    Args:
        filters: (36, C, O) from `transform_filters`.
        bias: (O,), or none.
    """
    batch, _, height, width = x.shape
    all_tiles = x.new_ones(batch, -(-height // TILE), -(-width // TILE)).nonzero()
    rows = x.new_empty(batch * height * width + 1, filters.shape[2])
    convolve_tiles(x, all_tiles, filters, bias, rows)
    return rows[:-1].view(batch, height, width, -1).permute(0, 3, 1, 2)


@winograd_conv2d.register_fake
def _(x: Tensor, filters: Tensor, bias: Tensor | None) -> Tensor:
    batch, _, height, width = x.shape
    return x.new_empty(batch, height, width, filters.shape[2]).permute(0, 3, 1, 2)


def convolve_tiles(x: Tensor, tiles: Tensor, filters: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """`winograd_conv2d` for some tiles only.

    Args:
        x: (B, C, H, W), channels-last.
        tiles: (n, 3) image, row and column, counted in tiles of 4×4 pixels.
        filters, bias: as above.
        out: at least B·H·W + 1 rows of O channels. Row (b·H + y)·W + x is that of a pixel; the last one takes what lies
            outside the image.
    """
    channels, out_channels = filters.shape[1:]
    # Allocated once: what is allocated anew for each step, the system has to zero first.
    here, there = x.new_empty(2, 36 * min(TILES_AT_ONCE, len(tiles)) * max(channels, out_channels))
    for some in tiles.split(TILES_AT_ONCE):
        count = len(some)
        rows, inside = window_rows(some * torch.tensor([1, TILE, TILE]), TILE + 2, x.shape)
        read_windows(x, rows, inside, here)
        transform(INPUT_TRANSFORM, here, there, count * channels)
        torch.bmm(part(here, 36, count, channels), filters, out=part(there, 36, count, out_channels))
        transform(OUTPUT_TRANSFORM, there, here, count * out_channels)
        targets = torch.where(inside, rows, len(out) - 1)[1:-1, 1:-1].flatten()
        results = part(there, len(targets), out_channels)
        out.index_copy_(0, targets, results if bias is None else results.add_(bias))


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


def read_windows(x: Tensor, rows: Tensor, inside: Tensor, out: Tensor) -> None:
    """Write the pixels of windows to the beginning of `out`, (size, size, n, C), zeros where a map has none.

    Args:
        x: (B, C, H, W), channels-last.
        rows, inside: from `window_rows`.
    """
    pixels = x.permute(0, 2, 3, 1).flatten(0, 2)
    windows = torch.index_select(pixels, 0, rows.flatten(), out=part(out, rows.numel(), x.shape[1]))
    windows.index_fill_(0, (~inside.flatten()).nonzero()[:, 0], 0)


def transform(matrix: list[list[int]], tiles: Tensor, workspace: Tensor, count: int) -> None:
    """M t Mᵀ for each of `count` square tiles t, the last dimension in `tiles`, in place."""
    matrix = tiles.new_tensor(matrix)
    after, before = matrix.shape
    torch.bmm(
        matrix.expand(before, -1, -1), part(tiles, before, before, count), out=part(workspace, before, after, count)
    )
    torch.mm(matrix, part(workspace, before, after * count), out=part(tiles, after, after * count))


def part(memory: Tensor, *shape: int) -> Tensor:
    """The first elements of a one-dimensional tensor, in that shape."""
    return memory[: math.prod(shape)].view(shape)
