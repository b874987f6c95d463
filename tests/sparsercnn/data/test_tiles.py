import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsercnn.data.tiles import tiles


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(20, 100), st.floats(0, 0.9))
def test_tiles_cover_the_picture_and_overlap(height, width, size, overlap):
    seen = np.zeros((height, width), dtype=bool)
    found = tiles(height, width, size, overlap)
    for x0, y0, x1, y1 in found:
        assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
        assert x1 - x0 == min(size, width) and y1 - y0 == min(size, height)
        seen[y0:y1, x0:x1] = True
    assert seen.all()
    starts = sorted({x0 for x0, *_ in found})
    # Starts are whole pixels, so that two tiles may have one pixel less in common.
    assert all(a + size - b >= np.floor(overlap * size) - 1 for a, b in zip(starts, starts[1:], strict=False))


def test_no_more_tiles_than_needed():
    assert tiles(640, 640, 640, 0.2) == [(0, 0, 640, 640)]
    assert tiles(100, 1152, 640, 0.2) == [(0, 0, 640, 100), (512, 0, 1152, 100)]
