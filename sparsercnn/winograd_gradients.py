"""Gradients of a 3×3 convolution by Winograd's algorithm, for the tiles that a gradient reaches.

A convolution is y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A, see `winograd`, so that the gradient of its filters is
Gᵀ [(A y' Aᵀ) ⊙ (Bᵀ d B)] G, summed over all tiles, y' being the gradient of y. That of its input is a convolution too.

Of a level of a feature pyramid a large part is read by no box. There the gradient is zero, and nothing to be done.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from .winograd import (
    FILTER_TRANSFORM,
    INPUT_TRANSFORM,
    OUTPUT_TRANSFORM,
    TILE,
    TILES_AT_ONCE,
    convolve_tiles,
    part,
    read_windows,
    transform,
    transform_filters,
    window_rows,
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
    tiles = _tiles_with_gradient(grad, reach=0)
    channels, out_channels = x.shape[1], grad.shape[1]
    at_once = 36 * min(TILES_AT_ONCE, len(tiles))
    inputs, outputs = x.new_empty(at_once * channels), x.new_empty(at_once * out_channels)
    workspace = x.new_empty(at_once * max(channels, out_channels))
    total = x.new_zeros(36, channels, out_channels)
    to_tiles = [list(column) for column in zip(*OUTPUT_TRANSFORM, strict=True)]
    for some in tiles.split(TILES_AT_ONCE):
        count = len(some)
        rows, inside = window_rows(some * torch.tensor([1, TILE, TILE]), TILE + 2, x.shape)
        read_windows(x, rows, inside, inputs)
        read_windows(grad, rows[1:-1, 1:-1], inside[1:-1, 1:-1], outputs)
        transform(INPUT_TRANSFORM, inputs, workspace, count * channels)
        transform(to_tiles, outputs, workspace, count * out_channels)
        inputs_of_bins = part(inputs, 36, count, channels).transpose(1, 2)
        torch.baddbmm(total, inputs_of_bins, part(outputs, 36, count, out_channels), out=total)
    filters = total.new_tensor(FILTER_TRANSFORM)
    return torch.einsum("ia,ijco,jb->ocab", filters, total.unflatten(0, (6, 6)), filters)


def _tiles_with_gradient(grad: Tensor, reach: int) -> Tensor:
    """(n, 3) image, row and column of each tile that is at most `reach` pixels away from a gradient other than zero."""
    pixels = grad.permute(0, 2, 3, 1)
    is_reached = ((pixels.amax(-1) != 0) | (pixels.amin(-1) != 0)).to(grad.dtype)
    is_near = F.max_pool2d(is_reached, 2 * reach + 1, stride=1, padding=reach)
    return F.max_pool2d(is_near, TILE, ceil_mode=True).nonzero()
