"""COCO files that were damaged at random, and what a COCO file means, read apart from the project's own checks."""

import json
import os
import random
import re
from pathlib import Path
from typing import Any

from PIL import Image

NAMES = ("a.jpg", "sub/b.jpg", "link.jpg")
SIZES = {"a.jpg": (40, 30), "sub/b.jpg": (30, 40), "link.jpg": (40, 30)}
ODD_NAMES = (
    "", ".", "..", "sub", "../c.jpg", "out.jpg", "up/c.jpg", "/etc/passwd", "sub/../a.jpg", "./a.jpg", "a.jpg/",
    "a.jpg\0", "a\n.jpg", "\ud800.jpg", "\ud800/a.jpg", "\udcff", "gone.jpg", "gone/a.jpg", "x" * 300,
    "up/JPEGImages/a.jpg", "é.jpg", "//a.jpg",
)  # fmt: skip
ODD_VALUES = (
    None, True, False, 0, 1, 2, -1, 1.5, -0.0, 1e-9, 1e6, 1e7, 1e300, float("nan"), float("inf"), -float("inf"), 2**31,
    2**53, 2**53 + 1, 10**30, 10**400, "", "1", "0", "cat", "NaN", [], {}, [1], [[]], [[1, 2, 3, 4, 5, 6]], {"a": 1},
    [1, 2, 3, 4], [1, 2, 3], [5, 5, -1, 5], [5, 5, 0, 5], [50, 5, 5, 5], [-9, 5, 3, 5], ["1", 2, 3, 4], [1, 2, None, 4],
    {"size": [30, 40], "counts": "abc"},
)  # fmt: skip
KEYS = (
    "id", "image_id", "category_id", "bbox", "area", "iscrowd", "ignore", "segmentation", "keypoints", "file_name",
    "width",    "height", "name", "score", "images", "annotations", "categories", "info",
)  # fmt: skip
ODD_BYTES = (
    b"", b"\0", b"\xff", b"\xef\xbb\xbf", b"NaN", b"Infinity", b",", b'"', b"{", b"}", b"[", b"]", b"-", b"e999",
    b"null", b"\\ud800", b"/*x*/", b"[" * 5000, b"9" * 5000, b"9" * 50, b'"id": 7, ',
    b'"bbox": [1, 2, 3, 4], ', b"true",
)  # fmt: skip


def damaged_coco_file(rng: random.Random) -> bytes:
    """A small COCO file of pictures in `NAMES`, changed in none, one or several places."""
    data = _good(rng)
    for _ in range(rng.choice((0, 0, 1, 1, 1, 2, 3))):
        _change(rng, data)
    text = json.dumps(data, indent=rng.choice((None, None, 1)))
    if rng.random() < 0.05:
        text = _repeat_a_key(rng, text)
    if rng.random() < 0.7:
        return text.encode()
    return damaged_bytes(rng, text, ODD_BYTES)


def _repeat_a_key(rng: random.Random, text: str) -> str:
    key = rng.choice(list(re.finditer(r'"\w+": ', text)))
    return text[: key.start()] + key[0] + rng.choice(("7", '"x"', "[]", "null")) + ", " + text[key.start() :]


def damaged_bytes(rng: random.Random, text: str, odd: tuple[bytes, ...]) -> bytes:
    """Text in another encoding, cut off, or with bytes replaced, repeated or put in."""
    content = text.encode()
    place, length = rng.randrange(len(content) + 1), rng.choice((1, 1, 2, 5, 20, 200))
    kind = rng.randrange(7)
    if kind == 0:
        return text.encode(rng.choice(("utf-16", "utf-8-sig", "utf-32", "cp037")))
    if kind == 1:
        return content[:place]
    if kind == 2:
        return content[:place] + rng.choice(odd) + content[place:]
    if kind == 3:
        return content[:place] + rng.choice(odd) + content[place + length :]
    if kind == 4:
        return content[: place + length] + content[place:]
    if kind == 5:
        return content[:place] + rng.randbytes(min(length, 20)) + content[place + length :]
    return content + rng.choice((b"", b"\n\n", b" ", b"x", b"{}", b"\0"))


def _good(rng: random.Random) -> dict[str, Any]:
    first = rng.choice((0, 1, 1, 7, -3, 10**9))
    as_text = rng.random() < 0.1
    images = [
        {"id": str(i) if as_text else i, "file_name": name, "width": SIZES[name][0], "height": SIZES[name][1]}
        for i, name in enumerate(rng.sample(NAMES, rng.randint(1, 3)), start=first)
    ]
    categories = [{"id": i, "name": n} for i, n in zip(rng.sample(range(-1, 90), 2), ("cat", "dog"), strict=True)]
    annotations = []
    for i in range(rng.randint(1, 5)):
        box = [rng.randint(0, 20), rng.uniform(0, 20), rng.uniform(2, 15), rng.randint(2, 15)]
        annotation = {
            "id": first + i,
            "image_id": rng.choice(images)["id"],
            "category_id": rng.choice(categories)["id"],
        }
        annotation |= {"bbox": box, "area": box[2] * box[3], "iscrowd": int(rng.random() < 0.1)}
        annotations.append(annotation)
    return {"images": images, "categories": categories, "annotations": annotations}


def _change(rng: random.Random, data: dict[str, Any]) -> None:
    """Change one place: a value, a key, an entry, or a whole list."""
    section = rng.choice(("images", "annotations", "annotations", "categories"))
    entries = data.get(section)
    if rng.random() < 0.05 or not isinstance(entries, list) or not entries or not isinstance(entries[-1], dict):
        data[rng.choice(KEYS)] = rng.choice(ODD_VALUES)
        return
    entry = entries[-1] if rng.random() < 0.5 or not isinstance(entries[0], dict) else entries[0]
    key = rng.choice(KEYS if rng.random() < 0.3 else [*entry, "id"])
    kind = rng.randrange(7)
    if kind == 0:
        entry.pop(key, None)
    elif kind == 1:
        entries.append(dict(entry) if rng.random() < 0.5 else rng.choice(ODD_VALUES))
    elif kind == 2:
        del entries[0]
    elif key == "file_name":
        entry[key] = rng.choice(ODD_NAMES)
    elif isinstance(entry.get(key), list) and entry[key] and rng.random() < 0.7:
        entry[key][rng.randrange(len(entry[key]))] = rng.choice(ODD_VALUES)
    else:
        entry[key] = rng.choice(ODD_VALUES)


class _Wrong(Exception):
    """The file means nothing."""


def coco_meaning(content: bytes, folder: Path) -> dict | None:
    """What a COCO file means as training and test data.

    Args:
        content: of the file.
        folder: of its images.

    Returns:
        {image id: (width, height, [(class, xyxy box, is crowd), …])}, or None if it must be refused.
    """
    try:
        data = json.loads(content.decode("utf-8"), object_pairs_hook=_unique)
        return _meaning(data, folder)
    except (_Wrong, ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError):
        return None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _demand(len({key for key, _ in pairs}) == len(pairs))
    return dict(pairs)


def _demand(*conditions: object) -> None:
    if not all(conditions):
        raise _Wrong


def _whole(x: object) -> bool:
    return type(x) is int and -(2**53) <= x <= 2**53


def _meaning(data: dict, folder: Path) -> dict:
    images, categories, annotations = data["images"], data["categories"], data["annotations"]
    _demand(type(images) is type(categories) is type(annotations) is list, images, categories)
    for section in (images, categories, annotations):
        ids = [entry["id"] for entry in section]
        _demand(len({(type(i), i) for i in ids}) == len(ids) == len(set(ids)))
    _demand(all(_whole(c["id"]) and type(c["name"]) is str for c in categories))
    classes = sorted(c["id"] for c in categories)
    kind = type(images[0]["id"])
    meaning: dict = {}
    for image in images:
        size = image["width"], image["height"]
        _demand(type(image["id"]) is kind, kind is str or _whole(image["id"]), *map(_whole, size))
        _demand(_size_of_file(image["file_name"], folder) == size)
        meaning[image["id"]] = (*size, [])
    for a in annotations:
        _demand(_whole(a["id"]), type(a["image_id"]) is kind, a["image_id"] in meaning, a["category_id"] in classes)
        _demand(type(a["category_id"]) is int, type(a["bbox"]) is list)
        x, y, w, h = a["bbox"]
        _demand(all(type(v) in (int, float) and -1e6 <= v <= 1e6 for v in (x, y, w, h)), w >= 0, h >= 0)
        _demand(type(a["area"]) in (int, float), 0 <= a["area"] <= 1e10)
        _demand(type(a["iscrowd"]) in (int, bool), a["iscrowd"] in (0, 1), a.get("ignore", 0) == 0)
        _demand(_harmless_shapes(a))
        box = (x, y, x + w, y + h)
        meaning[a["image_id"]][2].append((classes.index(a["category_id"]), box, bool(a["iscrowd"])))
    return meaning


def _harmless_shapes(annotation: dict) -> bool:
    mask, points = annotation.get("segmentation"), annotation.get("keypoints")
    good_mask = not mask or (type(mask) is list and all(type(p) is list for p in mask))
    good_mask = good_mask or (type(mask) is dict and "size" in mask and "counts" in mask)
    return good_mask and (not points or (type(points) is list and all(isinstance(p, int | float) for p in points)))


def _size_of_file(name: str, folder: Path) -> tuple[int, int]:
    _demand(type(name) is str, "\0" not in name)
    path = f"{folder}/{name}" if not name.startswith("/") else name
    _demand(os.path.isfile(path), Path(path).resolve().is_relative_to(folder.resolve()))
    with Image.open(path) as image:
        return image.size
