"""Finds pictures that are nearly the same: copies, resized or recompressed ones, mirrored ones, frames of a film."""

import numpy as np
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

# Bits along a side of a hash, and of 256 those in which two pictures may differ to be called nearly the same. Of 364
# blood smears and of 128 photos of COCO, unrelated pairs differ in 65 bits or more; recompressed, resized, brightened
# and noisy copies in 10 as a rule and in 49 at most.
SIDE = 16
LIMIT = 40
# Pairs whose difference is counted at once: 32 MB.
_PAIRS = 1 << 20


def picture_hash(picture: np.ndarray) -> np.ndarray:
    """(8,) uint64: the difference hash of a picture and that of its mirror image, of 256 bits each.

    A bit says whether one cell of a 16 × 17 grid is darker than the cell right of it.

    Args:
        picture: (H, W, 3) uint8 RGB.
    """
    gray = Image.fromarray(picture).convert("L").resize((SIDE + 1, SIDE), Image.Resampling.BOX)
    cells = np.asarray(gray, dtype=np.int16)
    both = [np.packbits(np.diff(view, axis=1) > 0) for view in (cells, cells[:, ::-1])]
    return np.concatenate(both).view(np.uint64)


def near_duplicates(hashes: np.ndarray, limit: int = LIMIT) -> np.ndarray:
    """(M, 2) int64: pairs i < j of pictures of which one, or its mirror image, is nearly the other.

    Args:
        hashes: (N, 8) of `picture_hash`.
        limit: bits in which they may differ.
    """
    plain, mirrored = hashes[:, :4], hashes[:, 4:]
    rows = max(1, _PAIRS // max(1, len(hashes)))
    found = [np.empty((0, 2), np.int64)]
    for start in range(0, len(hashes), rows):
        block = plain[start : start + rows, None]
        distances = [np.bitwise_count(block ^ others[None]).sum(-1, dtype=np.int16) for others in (plain, mirrored)]
        i, j = np.nonzero(np.minimum(*distances) <= limit)
        found.append(np.stack([i + start, j], axis=1)[i + start < j])
    return np.concatenate(found)


def group(count: int, pairs: np.ndarray) -> np.ndarray:
    """(count,) int64: for each of `count` pictures the number of its group, where the pictures of a pair share one.

    Args:
        count: of pictures.
        pairs: (M, 2) numbers of pictures.
    """
    graph = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return connected_components(graph, directed=False)[1].astype(np.int64)
