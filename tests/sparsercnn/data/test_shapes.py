"""The generated scenes: the same on every machine, with boxes that fit what one sees."""

import hashlib
import json

import numpy as np
import pytest
from PIL import Image

from sparsercnn.data.shapes import SHAPES_CLASSES, annotation_file, make_scene, prepare_shapes


def test_boxes_lie_in_the_image_and_classes_are_known():
    for index in range(20):
        scene = make_scene(seed=0, split=0, index=index, size=128)
        assert scene.image.shape == (128, 128, 3) and scene.image.dtype == np.uint8
        assert len(scene.boxes) == len(scene.classes) >= 1
        assert (scene.boxes[:, :2] >= 0).all() and (scene.boxes[:, :2] + scene.boxes[:, 2:] <= 128).all()
        assert (scene.boxes[:, 2:] >= 2).all()
        assert set(scene.classes) <= set(range(len(SHAPES_CLASSES)))


def test_boxes_are_tight():
    """Colors change across every side of the box of a lone object, and not just outside of it."""
    lone = next(s for s in (make_scene(1, 0, i, 128) for i in range(100)) if len(s.boxes) == 1 and s.boxes[0, 2] > 30)
    x0, y0, w, h = lone.boxes[0]
    middle = lone.image[int(y0 + h / 2), int(x0 + w / 2)].astype(int)
    same = np.abs(lone.image.astype(int) - middle).sum(-1) < 60
    ys, xs = same.nonzero()
    assert abs(xs.min() - x0) <= 2 and abs(ys.min() - y0) <= 2
    assert abs(xs.max() + 1 - x0 - w) <= 2 and abs(ys.max() + 1 - y0 - h) <= 2


def test_seeds_splits_and_indices_give_other_scenes():
    images = [make_scene(*key, 64).image.tobytes() for key in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))]
    assert len(set(images)) == 4
    assert make_scene(0, 0, 0, 64).image.tobytes() == images[0]


def test_scenes_are_the_same_on_every_machine(tmp_path):
    prepare_shapes(tmp_path, {"train": 6, "val": 3}, size=64, seed=7)
    text = b"".join(annotation_file(tmp_path, split).read_bytes() for split in ("train", "val"))
    pixels = b"".join(np.asarray(Image.open(f)).tobytes() for f in sorted(tmp_path.glob("*/*.png")))
    assert hashlib.sha256(text).hexdigest()[:16] == "50ee1214bf73e6bc"
    assert hashlib.sha256(pixels).hexdigest()[:16] == "d4af09e1d23a58f2"


def test_sizes_range_from_a_few_pixels_to_most_of_the_image():
    areas = np.concatenate([make_scene(0, 0, i, 128).boxes[:, 2:].prod(1) for i in range(100)])
    assert areas.min() < 12**2 and areas.max() > 96**2
    assert 0.15 < (areas < 32**2).mean() < 0.5


def test_a_finished_data_set_is_left_alone_and_an_unfinished_one_completed(tmp_path):
    counts = {"train": 3, "val": 2}
    assert prepare_shapes(tmp_path, counts, size=64) == {"train": True, "val": True}
    before = annotation_file(tmp_path, "train").stat().st_mtime_ns
    assert prepare_shapes(tmp_path, counts, size=64) == {"train": False, "val": False}
    assert annotation_file(tmp_path, "train").stat().st_mtime_ns == before

    (tmp_path / "val" / "000001.png").unlink()
    annotation_file(tmp_path, "train").write_text("{")
    assert prepare_shapes(tmp_path, counts, size=64) == {"train": True, "val": True}
    assert len(json.loads(annotation_file(tmp_path, "train").read_text())["images"]) == 3
    assert (tmp_path / "val" / "000001.png").is_file()


def test_generation_that_breaks_off_leaves_no_annotation_file(tmp_path, monkeypatch):
    prepare_shapes(tmp_path, {"train": 2}, size=64)

    def broken(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("sparsercnn.data.shapes.make_scene", broken)
    with pytest.raises(KeyboardInterrupt):
        prepare_shapes(tmp_path, {"train": 4}, size=64)
    assert not annotation_file(tmp_path, "train").exists()
