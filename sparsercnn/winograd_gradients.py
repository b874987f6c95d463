"""Gradients of a 3×3 convolution by Winograd's algorithm, for the tiles that a gradient reaches.

A convolution is y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A, see `winograd`, so that the gradient of its filters is
Gᵀ [(A y' Aᵀ) ⊙ (Bᵀ d B)] G, summed over all tiles, y' being the gradient of y. That of its input is a convolution too.

Of a level of a feature pyramid a large part is read by no box. There the gradient is zero, and nothing to be done.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from .winograd import (
    TILES_AT_ONCE,
    algorithm_for,
    both_axes,
    convolve_tiles,
    read_windows,
    tile_rows,
    transform,
    transform_filters,
)


def input_gradient(grad: Tensor, weight: Tensor) -> Tensor:
    """(B, C, H, W) gradient of the input.

    Args:
        grad: (B, O, H, W) of the output of a 3×3 convolution of stride 1 and padding 1, channels-last.
        weight: (O, C, 3, 3).
    """
    batch, _, height, width = grad.shape
    filters = transform_filters(weight.flip(2, 3).transpose(0, 1))
    rows = grad.new_zeros(batch * height * width + 1, weight.shape[1])
    convolve_tiles(grad, _tiles_with_gradient(grad, reach=1), filters, None, rows)
    return rows[:-1].view(batch, height, width, -1).permute(0, 3, 1, 2)


def weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """(O, C, 3, 3) gradient of the weight.

    Args:
        grad: as above.
        x: (B, C, H, W) input of the convolution, channels-last.
    """
    algorithm, tiles = algorithm_for(x.dtype), _tiles_with_gradient(grad, reach=0)
    channels, out_channels, bins = x.shape[1], grad.shape[1], algorithm.window**2
    size = bins * min(TILES_AT_ONCE, len(tiles)) * max(channels, out_channels)
    pixels, inputs, outputs = (x.new_empty(size) for _ in range(3))
    of_inputs, of_outputs = both_axes(algorithm.inputs, x), both_axes(algorithm.outputs, x).T
    total = x.new_zeros(bins, channels, out_channels)
    for rows, inside in zip(*(t.split(TILES_AT_ONCE) for t in tile_rows(tiles, x)), strict=True):
        of_x = transform(of_inputs, read_windows(x, rows, inside, pixels), inputs)
        read = (t[:, 1:-1, 1:-1] for t in (rows, inside))
        of_grad = transform(of_outputs, read_windows(grad, *read, pixels), outputs)
        torch.baddbmm(total, of_x.permute(1, 2, 0), of_grad.transpose(0, 1), out=total)
    filters = total.new_tensor(algorithm.filters)
    return torch.einsum("ia,ijco,jb->ocab", filters, total.unflatten(0, (algorithm.window,) * 2), filters)


def _tiles_with_gradient(grad: Tensor, reach: int) -> Tensor:
    """(n, 3) image, row and column of each tile that is at most `reach` pixels away from a gradient other than zero."""
    pixels = grad.permute(0, 2, 3, 1)
    is_reached = ((pixels.amax(-1) != 0) | (pixels.amin(-1) != 0)).to(grad.dtype)
    is_near = F.max_pool2d(is_reached, 2 * reach + 1, stride=1, padding=reach)
    return F.max_pool2d(is_near, algorithm_for(grad.dtype).tile, ceil_mode=True).nonzero()
