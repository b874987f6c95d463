"""3×3 convolutions with a quarter of the multiplications, in half precision with four ninths.

Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016: F(4×4, 3×3) and F(2×2, 3×3). A tile d of
the input, two pixels wider than the 4×4 or 2×2 of the output, and a filter g give Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A. For all
tiles and channels together the products in the middle are 36 or 16 matrix products.

In float32 the rounding errors are a few times those of a direct sum, those of gradients up to fifteen times; in half
precision, with the smaller tiles, two to three times. What is not finite may reach all pixels of a tile.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Transforms(NamedTuple):
    """F(m×m, 3×3)."""

    tile: int
    """m, pixels of the output along each side of a tile."""
    min_channels: int
    """Below, transforming the tiles takes what the multiplications save."""
    inputs: list[list[int]]
    """Bᵀ"""
    filters: list[list[float]]
    """G"""
    outputs: list[list[int]]
    """Aᵀ"""

    @property
    def window(self) -> int:
        """Pixels of the input along each side of a tile."""
        return self.tile + 2


LARGE_TILES = Transforms(
    tile=4,
    min_channels=128,
    inputs=[
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
    filters=[
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ],
    outputs=[
        [1, 1, 1, 1, 1, 0],
        [0, 1, -1, 2, -2, 0],
        [0, 1, 1, 4, 4, 0],
        [0, 1, -1, 8, -8, 1],
    ],
)
SMALL_TILES = Transforms(
    tile=2,
    min_channels=256,
    inputs=[
        [1, 0, -1, 0],
        [0, 1, 1, 0],
        [0, -1, 1, 0],
        [0, 1, 0, -1],
    ],
    filters=[
        [1, 0, 0],
        [1 / 2, 1 / 2, 1 / 2],
        [1 / 2, -1 / 2, 1 / 2],
        [0, 0, 1],
    ],
    outputs=[
        [1, 1, 1, 0],
        [0, 1, -1, -1],
    ],
)
TILES_AT_ONCE = 384
"""So many that the filters are read seldom, so few that what the steps hand on may stay in the processor's cache."""


def transforms_for(dtype: torch.dtype) -> Transforms:
    """Large tiles multiply less, but have intermediate results of very different size."""
    return LARGE_TILES if torch.finfo(dtype).bits > 16 else SMALL_TILES


def suits_winograd(conv: nn.Conv2d) -> bool:
    """Whether `winograd_conv2d` computes this convolution, and in less time if the map is not small."""
    if conv.weight.dtype not in (torch.float32, torch.bfloat16):
        return False
    ones = conv.stride == conv.padding == conv.dilation == (1, 1)
    is_wide = min(conv.in_channels, conv.out_channels) >= transforms_for(conv.weight.dtype).min_channels
    return ones and is_wide and conv.kernel_size == (3, 3) and conv.groups == 1


def tiles_of(x: Tensor) -> tuple[int, int, int]:
    """Images, rows and columns of the tiles of a map (B, C, H, W)."""
    tile = transforms_for(x.dtype).tile
    batch, _, height, width = x.shape
    return batch, -(-height // tile), -(-width // tile)


def transform_filters(weight: Tensor) -> Tensor:
    """Filters (O, C, 3, 3) to the (36 or 16, C, O) that `winograd_conv2d` takes."""
    one_axis = weight.new_tensor(transforms_for(weight.dtype).filters)
    taps = weight.permute(2, 3, 1, 0)  # (3, 3, C, O)
    with torch.autocast(weight.device.type, enabled=False):
        return (torch.kron(one_axis, one_axis) @ taps.flatten(2).flatten(0, 1)).unflatten(1, taps.shape[2:])


@torch.library.custom_op("sparsercnn::winograd_conv2d", mutates_args=())
def winograd_conv2d(x: Tensor, filters: Tensor, bias: Tensor | None) -> Tensor:
    """A 3×3 convolution of stride 1 and padding 1, (B, C, H, W) to (B, O, H, W), both channels-last.

    Args:
        filters: from `transform_filters`.
        bias: (O,), or none.
    """
    batch, _, height, width = x.shape
    all_tiles = x.new_ones(tiles_of(x)).nonzero()
    rows = x.new_empty(batch * height * width + 1, filters.shape[2])
    convolve_tiles(x, all_tiles, filters, bias, rows)
    return rows[:-1].view(batch, height, width, filters.shape[2]).permute(0, 3, 1, 2)


@winograd_conv2d.register_fake
def _(x: Tensor, filters: Tensor, bias: Tensor | None) -> Tensor:
    batch, _, height, width = x.shape
    return x.new_empty(batch, height, width, filters.shape[2]).permute(0, 3, 1, 2)


def convolve_tiles(x: Tensor, tiles: Tensor, filters: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """`winograd_conv2d` for some tiles only.

    Args:
        x: (B, C, H, W), channels-last.
        tiles: (n, 3) image, row and column, counted as `tiles_of` does.
        filters, bias: as above.
        out: at least B·H·W + 1 rows of O channels. Row (b·H + y)·W + x is that of a pixel; the last one takes what lies
            outside the image.
    """
    transforms = transforms_for(x.dtype)
    bins, channels, out_channels = filters.shape
    # Allocated once: what is allocated anew for each step, the system has to zero first.
    size = bins * min(TILES_AT_ONCE, len(tiles)) * max(channels, out_channels)
    here, there = x.new_empty(size), x.new_empty(size)
    inputs, outputs = both_axes(transforms.inputs, x), both_axes(transforms.outputs, x)
    pixels = x.permute(0, 2, 3, 1).flatten(0, 2)
    rows, inside = tile_rows(tiles, x)
    targets = torch.where(inside[:, 1:-1, 1:-1], rows[:, 1:-1, 1:-1], len(out) - 1)
    for start in range(0, len(tiles), TILES_AT_ONCE):
        some = slice(start, start + TILES_AT_ONCE)
        windows = read_windows(pixels, rows[some], inside[some], here)
        count = len(windows)
        if x.itemsize < 4:  # its products write tensors of any layout, but copy those they read
            of_bins = part(there, bins, count, channels)
        else:
            of_bins = part(there, count, bins, channels).transpose(0, 1)
        transform(inputs, windows, of_bins.transpose(0, 1))
        of_tiles = part(here, count, bins, out_channels)
        torch.bmm(of_bins, filters, out=of_tiles.transpose(0, 1))
        results = transform(outputs, of_tiles, part(there, count, len(outputs), out_channels)).flatten(0, 1)
        out.index_copy_(0, targets[some].flatten(), results if bias is None else results.add_(bias))


def tile_rows(tiles: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Where to find the pixels of the input of tiles in a map (B, C, H, W) that is laid out as (B·H·W, C).

    Args:
        tiles: (n, 3), as above.

    Returns:
        The (n, window, window) rows, and whether there is such a pixel; if not, the row is that of the nearest one.
    """
    transforms = transforms_for(x.dtype)
    image, row, column = tiles.t()[..., None, None]
    height, width = x.shape[2:]
    steps = torch.arange(-1, transforms.window - 1)
    row, column = transforms.tile * row + steps[:, None], transforms.tile * column + steps
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return (image * height + row.clamp(0, height - 1)) * width + column.clamp(0, width - 1), inside


def read_windows(pixels: Tensor, rows: Tensor, inside: Tensor, memory: Tensor) -> Tensor:
    """What lies in square windows, (n, window², C), zeros where there is no pixel, at the beginning of `memory`.

    Args:
        pixels: (B·H·W, C).
        rows, inside: (n, window, window) from `tile_rows`.
    """
    windows = part(memory, rows.numel(), pixels.shape[1])
    torch.index_select(pixels, 0, rows.flatten(), out=windows)
    windows.index_fill_(0, (~inside.flatten()).nonzero()[:, 0], 0)
    return windows.view(*inside.flatten(1).shape, pixels.shape[1])


def both_axes(matrix: list[list[int]], like: Tensor) -> Tensor:
    """M ⊗ M: for `transform` along both axes in one step, which rounds once."""
    one_axis = like.new_tensor(matrix)
    return torch.kron(one_axis, one_axis)


def transform(matrix: Tensor, tiles: Tensor, out: Tensor) -> Tensor:
    """M t Mᵀ for square tiles t, (n, size², C); the matrix comes from `both_axes`.

    Cores divide the tiles among them, as in the steps before and after: cores without a common cache need not exchange
    them.
    """
    return torch.bmm(matrix.expand(len(tiles), -1, -1), tiles, out=out)


def part(memory: Tensor, *shape: int) -> Tensor:
    """The first elements of a one-dimensional tensor, in that shape."""
    return memory[: math.prod(shape)].view(shape)
