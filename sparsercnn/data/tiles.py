"""Tiles that cover a picture."""

import math


def tiles(height: int, width: int, size: int, overlap: float) -> list[tuple[int, int, int, int]]:
    """(x0, y0, x1, y1) of square tiles in rows from the top left, evenly spread, that cover a picture.

    Args:
        height, width: of the picture in pixels. Where it is smaller than a tile, the tile is as small.
        size: side of a tile in pixels.
        overlap: share of its side that a tile has in common with the next one, at least; 0 to below 1.
    """
    columns, rows = (_starts(length, size, overlap) for length in (width, height))
    return [(x, y, min(x + size, width), min(y + size, height)) for y in rows for x in columns]


def _starts(length: int, size: int, overlap: float) -> list[int]:
    last = length - size
    if last <= 0:
        return [0]
    count = math.ceil(last / max(1, math.floor(size * (1 - overlap))))
    return [round(i * last / count) for i in range(count + 1)]
