"""Gradients of a 3×3 convolution by Winograd's algorithm, for the tiles that a gradient reaches.

A convolution is y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A, see `winograd`, so that the gradient of its filters is
Gᵀ [(A y' Aᵀ) ⊙ (Bᵀ d B)] G, summed over all tiles, y' being the gradient of y. That of its input is a convolution too.

In float32 or float64: sums over many tiles would lose too much in half precision.

Of a level of a feature pyramid a large part is read by no box. There the gradient is zero, and nothing to be done.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from .winograd import (
    TILES_AT_ONCE,
    both_axes,
    convolve_tiles,
    part,
    read_windows,
    tile_rows,
    transform,
    transform_filters,
    transforms_for,
)


def input_gradient(grad: Tensor, weight: Tensor) -> Tensor:
    """(B, C, H, W) gradient of the input.

    Args:
        grad: (B, O, H, W) of the output of a 3×3 convolution of stride 1 and padding 1, channels-last.
        weight: (O, C, 3, 3).
    """
    batch, _, height, width = grad.shape
    filters = transform_filters(weight.flip(2, 3).transpose(0, 1))
    rows = grad.new_zeros(batch * height * width + 1, filters.shape[2])
    convolve_tiles(grad, _tiles_with_gradient(grad, reach=1), filters, None, rows)
    return rows[:-1].view(batch, height, width, filters.shape[2]).permute(0, 3, 1, 2)


def weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """(O, C, 3, 3) gradient of the weight.

    Args:
        grad: as above.
        x: (B, C, H, W) input of the convolution, channels-last.
    """
    transforms, tiles = transforms_for(x.dtype), _tiles_with_gradient(grad, reach=0)
    channels, out_channels, bins = x.shape[1], grad.shape[1], transforms.window**2
    size = bins * min(TILES_AT_ONCE, len(tiles)) * max(channels, out_channels)
    here, of_x, of_grad = (x.new_empty(size) for _ in range(3))
    of_inputs, of_outputs = both_axes(transforms.inputs, x), both_axes(transforms.outputs, x).T
    total = x.new_zeros(bins, channels, out_channels)
    pixels, gradients = (t.permute(0, 2, 3, 1).flatten(0, 2) for t in (x, grad))
    for rows, inside in zip(*(t.split(TILES_AT_ONCE) for t in tile_rows(tiles, x)), strict=True):
        windows = read_windows(pixels, rows, inside, here)
        inputs = transform(of_inputs, windows, part(of_x, len(rows), bins, channels))
        windows = read_windows(gradients, rows[:, 1:-1, 1:-1], inside[:, 1:-1, 1:-1], here)
        outputs = transform(of_outputs, windows, part(of_grad, len(rows), bins, out_channels))
        torch.baddbmm(total, inputs.permute(1, 2, 0), outputs.transpose(0, 1), out=total)
    filters = total.new_tensor(transforms.filters)
    return torch.einsum("ia,ijco,jb->ocab", filters, total.unflatten(0, (transforms.window,) * 2), filters)


def _tiles_with_gradient(grad: Tensor, reach: int) -> Tensor:
    """(n, 3) image, row and column of each tile that is at most `reach` pixels away from a gradient other than zero."""
    pixels = grad.permute(0, 2, 3, 1)
    is_reached = ((pixels.amax(-1) != 0) | (pixels.amin(-1) != 0)).to(grad.dtype)
    is_near = F.max_pool2d(is_reached, 2 * reach + 1, stride=1, padding=reach)
    return F.max_pool2d(is_near, transforms_for(grad.dtype).tile, ceil_mode=True).nonzero()
