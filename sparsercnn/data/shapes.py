"""`shapes`: generated scenes of circles, rectangles and triangles in COCO format, for those without data at hand.

There are two kinds: `shapes` for a first training in minutes, `shapes_scales` with objects of very different sizes.

Every image is a function of (kind, seed, split, index) alone. Randomness is the raw output of a counter-based generator
(Philox, whose stream numpy promises to keep) and all geometry is integer arithmetic on a grid of quarter pixels, so two
machines make the same annotations and the same pixels.
"""

from __future__ import annotations

import functools
import io
import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

SHAPES_CLASSES = ("circle", "rectangle", "triangle")
SPLITS = ("train", "val", "test")
VERSION = 1  # part of what a finished data set must match: raise it when the scenes change

_SUB = 4  # samples per pixel and axis, for anti-aliasing and for boxes to a quarter pixel
_TURN = 64  # angles are multiples of 1/64 turn
_TILT = 5  # rectangles and triangles turn by up to this many 1/64 either way
_COS = [round(4096 * math.cos(2 * math.pi * k / _TURN)) for k in range(_TURN)]
# Length of an object in 1/128 of the image side, as (chance out of 10, least, most), drawn largest first.
_SIZES = ((1, 8, 16), (2, 17, 31), (5, 32, 72), (2, 73, 120))
# Lengths that are equally many in each octave: 12 to 400 pixels of 448, in quarter pixels.
_SCALES = [round(48 * (400 / 12) ** (i / 255)) for i in range(256)]
_MIN_VISIBLE = 80  # per cent of an object that later ones must leave uncovered
_MIN_CONTRAST = 200  # sum over R, G, B between an object and what it may lie on


class _Random:
    """Integers from a counter-based stream; no floats, so no rounding that could differ between machines."""

    def __init__(self, seed: int, split: int, index: int):
        self._bits = np.random.Philox(key=np.array([seed, (split << 32) + index], dtype=np.uint64))

    def between(self, low: int, high: int) -> int:
        """An integer from low to high, both included."""
        return low + int(self._bits.random_raw() % (high - low + 1))

    def array(self, shape: tuple[int, ...], high: int) -> np.ndarray:
        """int64 array of integers from 0 to high, both included."""
        return (self._bits.random_raw(math.prod(shape)) % np.uint64(high + 1)).astype(np.int64).reshape(shape)


@dataclass(frozen=True)
class Scene:
    """One image and its objects.

    Attributes:
        image: (size, size, 3) uint8, RGB.
        boxes: (N, 4) float64, absolute xywh around what is visible of each object, in multiples of a quarter pixel.
        classes: index into `SHAPES_CLASSES` of each object.
    """

    image: np.ndarray
    boxes: np.ndarray
    classes: list[int]


def _mixed_length(random: _Random) -> int:
    spread = [limits for chance, *limits in _SIZES for _ in range(chance)]
    return random.between(*spread[random.between(0, len(spread) - 1)])


def _log_uniform_length(random: _Random) -> int:
    return _SCALES[random.between(0, len(_SCALES) - 1)]


@dataclass(frozen=True)
class Kind:
    """What scenes look like.

    Attributes:
        size: width and height of the images in pixels, if nothing else is asked for.
        counts: images of each split, if nothing else is asked for.
        most_objects: in a scene; the fewest is one.
        draw_length: draws the length of an object, in units of which the side of an image has `units`.
        units: see `draw_length`.
    """

    size: int
    counts: dict[str, int]
    most_objects: int
    draw_length: Callable[[_Random], int]
    units: int


KINDS = {
    "shapes": Kind(128, {"train": 400, "val": 100}, 4, _mixed_length, 128),
    "shapes_scales": Kind(448, {"train": 400, "val": 100, "test": 150}, 12, _log_uniform_length, 4 * 448),
}


def make_scene(seed: int, split: int, index: int, size: int, kind: str = "shapes") -> Scene:
    """Draw scene `index` of a split: objects over a textured background of size×size pixels.

    Args:
        seed: of the data set.
        split: index into `SPLITS`.
        index: of the scene in its split.
        size: width and height in pixels.
        kind: one of `KINDS`: up to four objects, mostly large; or up to twelve, of sizes from 1/37 to 8/9 of the image,
            equally many in each octave.
    """
    look = KINDS[kind]
    random = _Random(seed, split, index)
    background, colors = _background(random, size)
    owner = np.zeros((size * _SUB, size * _SUB), dtype=np.uint8)  # topmost object of each sample, 0 is background
    areas = [0]
    classes = []
    count = random.between(1, look.most_objects)
    for length in sorted((look.draw_length(random) for _ in range(count)), reverse=True):
        shape = random.between(0, len(SHAPES_CLASSES) - 1)
        area = _place(random, owner, areas, shape, length * size * _SUB // look.units)
        if area:
            areas.append(area)
            classes.append(shape)
            colors.append(_contrasting_color(random, colors))
    image = _composite(background, owner, colors[2:])
    image += random.array(image.shape, 16) - 8
    return Scene(image.clip(0, 255).astype(np.uint8), _visible_boxes(owner, len(classes)), classes)


def _background(random: _Random, size: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """A texture between two similar colors, (size, size, 3) int64, and the two colors."""
    first = random.array((3,), 255)
    second = (first + random.array((3,), 96) - 48).clip(0, 255)
    y, x = np.mgrid[:size, :size]
    kind = random.between(0, 3)
    if kind == 0:  # stripes in any direction
        angle, width = random.between(0, _TURN - 1), random.between(size // 16 + 1, size // 4 + 1)
        mix = (x * _COS[angle] + y * _COS[angle - _TURN // 4]) // (4096 * width) % 2 * 256
    elif kind == 1:  # checkerboard
        width = random.between(size // 16 + 1, size // 4 + 1)
        mix = (x // width + y // width) % 2 * 256
    else:  # clouds, from smooth to fine
        mix = _value_noise(random, size, cells=random.between(1, 4) if kind == 2 else random.between(8, 24))
    mix = mix[..., None]
    return (first * (256 - mix) + second * mix) >> 8, [first, second]


def _value_noise(random: _Random, size: int, cells: int) -> np.ndarray:
    """(size, size) values in 0…256, bilinear between random values at the corners of cells×cells squares."""
    corners = random.array((cells + 1, cells + 1), 256)
    position = np.arange(size) * cells * 256 // size
    cell, part = position >> 8, position & 255
    rows = corners[cell] * (256 - part[:, None]) + corners[cell + 1] * part[:, None]
    return (rows[:, cell] * (256 - part) + rows[:, cell + 1] * part) >> 16


def _contrasting_color(random: _Random, others: list[np.ndarray]) -> np.ndarray:
    """A color that differs from all others; after many tries the last one drawn, for the rare crowded palette."""
    for _ in range(50):
        color = random.array((3,), 255)
        if min(np.abs(color - other).sum() for other in others) >= _MIN_CONTRAST:
            break
    return color


def _place(random: _Random, owner: np.ndarray, areas: list[int], shape: int, length: int) -> int:
    """Try places for one object; draw it into `owner` as object len(areas) and return its area, or 0 if none was free.

    Args:
        owner: (G, G) topmost object of each sample, changed in place.
        areas: area in samples of each object so far, entry 0 belongs to the background.
        shape: index into `SHAPES_CLASSES`.
        length: size of the object in samples.
    """
    mask = _MASKS[shape](random, length)
    height, width = mask.shape
    area = int(mask.sum())
    visible_before = np.bincount(owner.ravel(), minlength=len(areas))
    for _ in range(20):
        top, left = random.between(0, len(owner) - height), random.between(0, len(owner) - width)
        below = owner[top : top + height, left : left + width]
        hidden = np.bincount(below[mask], minlength=len(areas))
        visible = visible_before - hidden
        if any(100 * visible[i] < _MIN_VISIBLE * areas[i] for i in range(1, len(areas))):
            continue
        below[mask] = len(areas)
        return area
    return 0


def _circle(random: _Random, length: int) -> np.ndarray:
    offset = 2 * np.arange(length) + 1 - length
    return offset[:, None] ** 2 + offset**2 <= length**2


def _rectangle(random: _Random, length: int) -> np.ndarray:
    width, height = length, length * random.between(40, 100) // 100
    angle = random.between(-_TILT, _TILT)
    corners = [(-width, -height), (width, -height), (width, height), (-width, height)]
    # Scaled so that the diagonal, not the side, has the length asked for: no angle makes the box outgrow the image.
    diagonal = math.isqrt(width**2 + height**2)
    return _polygon([_rotate(x * length // diagonal, y * length // diagonal, angle) for x, y in corners])


def _triangle(random: _Random, length: int) -> np.ndarray:
    start = 3 * _TURN // 4 + random.between(-_TILT, _TILT)  # the first corner points up
    angles = (start, start + random.between(18, 24), start + random.between(40, 46))
    return _polygon([_rotate(length, 0, angle) for angle in angles])


def _rotate(x: int, y: int, angle: int) -> tuple[int, int]:
    cos, sin = _COS[angle % _TURN], _COS[(angle - _TURN // 4) % _TURN]
    return (x * cos - y * sin) // 4096, (x * sin + y * cos) // 4096


def _polygon(corners: list[tuple[int, int]]) -> np.ndarray:
    """Samples in a convex polygon whose corners, in half samples, turn clockwise on screen; cut to its bounds."""
    (x0, y0), (x1, y1) = np.min(corners, axis=0), np.max(corners, axis=0)
    y, x = np.mgrid[y0 : y1 + 1 : 2, x0 : x1 + 1 : 2] + 1
    edges = zip(corners, corners[1:] + corners[:1], strict=True)
    sides = [(bx - ax) * (y - ay) - (by - ay) * (x - ax) >= 0 for (ax, ay), (bx, by) in edges]
    return np.logical_and.reduce(sides)


_MASKS = (_circle, _rectangle, _triangle)


def _composite(background: np.ndarray, owner: np.ndarray, colors: list[np.ndarray]) -> np.ndarray:
    """Background and objects blended by how many samples of each pixel they own, (size, size, 3) int64."""
    image = background * _samples_per_pixel(owner == 0)
    for index, color in enumerate(colors, start=1):
        image += color * _samples_per_pixel(owner == index)
    return image // _SUB**2


def _samples_per_pixel(mask: np.ndarray) -> np.ndarray:
    """(G, G) bool to how many samples of each pixel are True, (size, size, 1) int64."""
    # Sums of slices: numpy takes several times as long to reduce over axes of a few elements.
    rows = functools.reduce(np.add, (mask[i::_SUB].astype(np.int64) for i in range(_SUB)))
    return functools.reduce(np.add, (rows[:, i::_SUB] for i in range(_SUB)))[..., None]


def _visible_boxes(owner: np.ndarray, count: int) -> np.ndarray:
    boxes = np.zeros((count, 4))
    for index in range(count):
        mask = owner == index + 1
        x, y = mask.any(0).nonzero()[0], mask.any(1).nonzero()[0]
        boxes[index] = x[0], y[0], x[-1] - x[0] + 1, y[-1] - y[0] + 1
    return boxes / _SUB


def prepare_shapes(
    root: str | Path, counts: dict[str, int], size: int | None = None, seed: int = 0, kind: str = "shapes"
) -> dict[str, bool]:
    """Write `root/{split}/*.png` and `root/annotations/instances_{split}.json` for each split that is not there yet.

    The annotation file is written last and in one step: where it exists, the split is complete.

    Args:
        root: folder of the data set.
        counts: number of images of each split, for example {"train": 400, "val": 100}.
        size: width and height of the images in pixels, by default the one of the kind.
        seed: another seed gives another data set.
        kind: one of `KINDS`.

    Returns:
        For each split whether it was written (False: it was complete already).
    """
    written = {}
    for split, count in counts.items():
        info = {
            "description": kind,
            "version": VERSION,
            "seed": seed,
            "size": size or KINDS[kind].size,
            "count": count,
        }
        written[split] = not _is_complete(Path(root), split, info)
        if written[split]:
            _write_split(Path(root), split, info)
    return written


def annotation_file(root: str | Path, split: str) -> Path:
    """Path of the annotations of "train" or "val" in the folder `root` of the data set."""
    return Path(root) / "annotations" / f"instances_{split}.json"


def _is_complete(root: Path, split: str, info: dict) -> bool:
    try:
        data = json.loads(annotation_file(root, split).read_text())
    except (FileNotFoundError, ValueError):
        return False
    return data.get("info") == info and all((root / split / image["file_name"]).is_file() for image in data["images"])


def _write_split(root: Path, split: str, info: dict) -> None:
    target = annotation_file(root, split)
    target.unlink(missing_ok=True)  # while images change there must be no file that calls them complete
    (root / split).mkdir(parents=True, exist_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    images: list[dict] = []
    annotations: list[dict] = []
    for index in tqdm(range(info["count"]), desc=f"{info['description']} {split}", unit="image"):
        scene = make_scene(info["seed"], SPLITS.index(split), index, info["size"], info["description"])
        name = f"{index:06d}.png"
        buffer = io.BytesIO()
        Image.fromarray(scene.image).save(buffer, format="PNG")
        _write_atomically(root / split / name, buffer.getvalue())
        images.append({"id": index + 1, "file_name": name, "width": info["size"], "height": info["size"]})
        for box, shape in zip(scene.boxes.tolist(), scene.classes, strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": shape + 1,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
            )
    categories = [{"id": i, "name": name} for i, name in enumerate(SHAPES_CLASSES, start=1)]
    data = {"info": info, "images": images, "annotations": annotations, "categories": categories}
    _write_atomically(target, json.dumps(data).encode())


def _write_atomically(path: Path, content: bytes) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_bytes(content)
    os.replace(partial, path)
