"""Data sets in VOC's format that were damaged at random, and what they mean, read apart from the project's checks."""

import math
import random
import re
from pathlib import Path
from xml.dom import minidom
from xml.parsers.expat import ExpatError

from .coco_files import damaged_bytes

CLASSES = ("cat", "dog")
ODD_TEXTS = (
    "", " ", "0", "-1", "1", "40", "41", "1e3", "1e7", "nan", "inf", "-inf", "abc", "1_0", " 5 ", "9" * 30, "9" * 5000,
    "½",    "&lt;", "&#0;", "&amp;", "<b/>",
    "<b>1</b>", "1<b/>2", "<!-- c -->3", "<![CDATA[7]]>", "dog", "&e;", "\x07", "cat ",
)  # fmt: skip
DOCTYPES = (
    "<!DOCTYPE a>",
    "<!DOCTYPE a [<!ENTITY e 'cat'>]>",
    "<!DOCTYPE a [<!ENTITY e SYSTEM 'file:///etc/passwd'>]>",
    "<!DOCTYPE a SYSTEM 'file:///etc/passwd'>",
    "<!DOCTYPE a [<!ENTITY e0 'ha'>" + "".join(f"<!ENTITY e{i} '{f'&e{i - 1};' * 9}'>" for i in range(1, 9)) + "]>",
)
ODD_LISTS = (
    b"",
    b"\n",
    b"a a",
    b"a\nb",
    b"b",
    b"../a",
    b"sub/../a",
    b"/a",
    b"a\0",
    b"\xff",
    b"a\na",
    b"sub/b",
    b"..",
    b"A",
)
ODD_BYTES = (
    b"",
    b"\0",
    b"\xff",
    b"<",
    b">",
    b"&",
    b"<object>",
    b"</object>",
    b"<a>" * 5000,
    b"]]>",
    b"<?xml?>",
    b"\xef\xbb\xbf",
)


def damaged_voc_file(rng: random.Random) -> tuple[bytes, bytes]:
    """The XML file of image a, and the list of images, one of them or both changed in no, one or several places."""
    objects = "".join(_good_object(rng) for _ in range(rng.randint(1, 3)))
    text = f"<annotation><size><width>40</width><height>30</height></size>{objects}</annotation>"
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        text = _change(rng, text)
    content = text.encode("utf-8", "surrogatepass") if rng.random() < 0.8 else damaged_bytes(rng, text, ODD_BYTES)
    return content, rng.choice(ODD_LISTS) if rng.random() < 0.1 else b"a\n"


def _good_object(rng: random.Random) -> str:
    x, y = rng.randint(1, 20), rng.uniform(1, 20)
    sides = {"xmin": x, "ymin": y, "xmax": x + rng.randint(0, 15), "ymax": y + rng.uniform(0, 15)}
    box = "".join(f"<{side}>{value}</{side}>" for side, value in sides.items())
    return f"<object><name>{rng.choice(CLASSES)}</name><bndbox>{box}</bndbox></object>"


def _change(rng: random.Random, text: str) -> str:
    """Change the text of one element, remove, repeat or rename it, or put something in front."""
    kind = rng.randrange(6)
    if kind == 0:
        return (
            rng.choice((*DOCTYPES, "<?xml version='1.0' encoding='latin-1'?>", "<?xml version='1.0'?>", "\ufeff", "x"))
            + text
        )
    leaves = list(re.finditer(r"<(\w+)>([^<]*)</\1>", text))
    if not leaves:
        return text
    leaf = rng.choice(leaves)
    tag, value = leaf[1], leaf[2]
    new = {
        1: f"<{tag}>{rng.choice(ODD_TEXTS)}</{tag}>",
        2: f"<{tag}>{rng.choice(ODD_TEXTS)}</{tag}>",
        3: "",
        4: leaf[0] + f"<{tag}>{rng.choice(ODD_TEXTS)}</{tag}>",
        5: f"<{rng.choice(('name', 'xmin', 'other'))}>{value}</{tag}>",
    }[kind]
    return text[: leaf.start()] + new + text[leaf.end() :]


def voc_meaning(folder: Path) -> dict | None:
    """What the data set in `folder` means, as `coco_meaning` returns it."""
    try:
        ids = (folder / "ImageSets/Main/train.txt").read_text().split()
        if ids != ["a"]:
            # Whatever else the list may hold, there is one annotation file.
            return None
        text = (folder / "Annotations/a.xml").read_text(encoding="utf-8")
        if "<!DOCTYPE" in text:
            return None
        root = minidom.parseString(text).documentElement
        size = tuple(int(_text(_child(root, "size"), side)) for side in ("width", "height"))
        objects = [_object(o) for o in root.childNodes if getattr(o, "tagName", None) == "object"]
    except (ValueError, IndexError, ExpatError, LookupError, OverflowError):
        return None
    if size != (40, 30) or None in objects:
        return None
    return {"a": (*size, objects)}


def _child(node: minidom.Element, tag: str) -> minidom.Element:
    return [child for child in node.childNodes if getattr(child, "tagName", None) == tag][0]


def _text(node: minidom.Element, tag: str) -> str:
    """What stands in the first such child before the first element in it."""
    text = ""
    for child in _child(node, tag).childNodes:
        if child.nodeType == child.ELEMENT_NODE:
            break
        text += child.data if child.nodeType in (child.TEXT_NODE, child.CDATA_SECTION_NODE) else ""
    return text


def _object(node: minidom.Element) -> tuple | None:
    box = _child(node, "bndbox")
    x0, y0, x1, y1 = sides = [float(_text(box, side)) for side in ("xmin", "ymin", "xmax", "ymax")]
    name = _text(node, "name")
    if name not in CLASSES or not all(math.isfinite(x) and abs(x) <= 1e6 for x in sides) or x1 < x0 or y1 < y0:
        return None
    return CLASSES.index(name), (x0 - 1, y0 - 1, x1, y1), False
