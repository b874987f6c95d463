"""A palette of 74 colors that are easy to tell apart, for drawing."""

from __future__ import annotations

import random

import numpy as np

__all__ = ["colormap", "random_color", "random_colors"]


def _palette() -> np.ndarray:
    # Line colors of common plotting programs, then grays and pure colors, then an even walk over the RGB cube.
    lines = [
        (0.000, 0.447, 0.741),
        (0.850, 0.325, 0.098),
        (0.929, 0.694, 0.125),
        (0.494, 0.184, 0.556),
        (0.466, 0.674, 0.188),
        (0.301, 0.745, 0.933),
        (0.635, 0.078, 0.184),
    ]
    grays = [(0.3, 0.3, 0.3), (0.6, 0.6, 0.6)]
    pure = [(1, 0, 0), (1, 0.5, 0), (0.749, 0.749, 0), (0, 1, 0), (0, 0, 1), (0.667, 0, 1)]
    thirds = (0, 0.333, 0.667, 1)
    grid = [(r, g, 0) for r in thirds[1:] for g in thirds[1:]]
    grid += [(r, g, 0.5) for r in thirds for g in thirds if r or g]
    grid += [(r, g, 1) for r in thirds for g in thirds if (r or g) and (r, g) != (1, 1)]
    sixths = (0.167, 0.333, 0.5, 0.667, 0.833, 1)
    ramps = [(s, 0, 0) for s in sixths[1:]] + [(0, s, 0) for s in sixths] + [(0, 0, s) for s in sixths]
    ramps += [(s, s, s) for s in (0, 0.143, 0.857, 1)]
    return np.array(lines + grays + pure + grid + ramps, dtype=np.float32)


_COLORS = _palette()


def colormap(rgb: bool = False, maximum: int = 255) -> np.ndarray:
    """The palette.

    Args:
        rgb: in RGB order, else BGR.
        maximum: 255 or 1, the largest value of a channel.

    Returns:
        (74, 3) float32.
    """
    assert maximum in [255, 1], maximum
    colors = _COLORS * maximum
    return colors if rgb else colors[:, ::-1]


def random_color(rgb: bool = False, maximum: int = 255) -> np.ndarray:
    """A random color of the palette, (3,) float32. For the arguments see `colormap`."""
    color = _COLORS[np.random.randint(0, len(_COLORS))] * maximum
    return color if rgb else color[::-1]


def random_colors(N: int, rgb: bool = False, maximum: int = 255) -> list[np.ndarray]:
    """N different random colors of the palette. For the other arguments see `colormap`.

    Raises:
        ValueError: N is larger than the palette.
    """
    chosen = random.sample(range(len(_COLORS)), N)
    return [_COLORS[i] * maximum if rgb else (_COLORS[i] * maximum)[::-1] for i in chosen]
