"""Pictures that are nearly the same are found, others are not."""

import io

import numpy as np
from PIL import Image

from sparsercnn.data.duplicates import group, near_duplicates, picture_hash
from sparsercnn.data.shapes import make_scene


def jpeg(picture):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=75)
    return np.asarray(Image.open(file))


def test_copies_are_found_and_other_pictures_are_not():
    scenes = [make_scene(seed=0, split=0, index=i, size=128).image for i in range(12)]
    brighter = np.clip(scenes[4].astype(int) + 12, 0, 255).astype(np.uint8)
    small = np.asarray(Image.fromarray(scenes[2]).resize((70, 70)))
    pictures = [*scenes, jpeg(scenes[0]), small, brighter, np.ascontiguousarray(scenes[6][:, ::-1])]
    pairs = near_duplicates(np.stack([picture_hash(x) for x in pictures]))
    assert pairs.tolist() == [[0, 12], [2, 13], [4, 14], [6, 15]]


def test_groups_are_chains_of_pairs():
    groups = group(6, np.array([[0, 3], [3, 5], [1, 2]]))
    assert groups[0] == groups[3] == groups[5] and groups[1] == groups[2]
    assert len(set(groups.tolist())) == 3
    assert len(set(group(3, np.empty((0, 2), np.int64)).tolist())) == 3
