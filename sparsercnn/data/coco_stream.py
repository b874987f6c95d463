"""COCO annotation files of gigabytes, read piece by piece: in little memory, and at a gigabyte in some ten seconds."""

import functools
import json
import mmap
import re
from collections.abc import Callable, Iterator
from typing import TypeVar

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from ..errors import InputError

# Bytes of JSON that are taken apart at once.
PIECE = 8 << 20
# Where one object of a list ends and the next begins, most likely: inside an entry there may be lists of objects too.
_BETWEEN_OBJECTS = re.compile(rb"\}\s*,\s*(?=\{)")
# How far before its end a piece is searched for such a place.
_TAIL = 1 << 16
_SEPARATOR = re.compile(rb"[\s,]*")
_STRING_OR_BRACE = re.compile(rb'"(?:[^"\\]|\\.)*"|[{}"]', re.DOTALL)

_NO_LIST = "{} is not in COCO format: 'images', 'annotations' and 'categories' must be lists of objects"

Number = int | float


class CocoFile(Struct):
    """The three lists of a COCO file, as JSON text."""

    images: Raw
    categories: Raw
    # Test sets are published without.
    annotations: Raw = Raw(b"[]")


class CocoImage(Struct, gc=False):
    """An entry of "images"; further keys are skipped."""

    id: int | str
    file_name: str
    height: int
    width: int


class CocoAnnotation(Struct, gc=False):
    """An entry of "annotations"; further keys, among them masks, are skipped."""

    id: int
    image_id: int | str
    category_id: int
    bbox: tuple[Number, Number, Number, Number]
    area: Number = -1.0
    iscrowd: int | UnsetType = UNSET
    ignore: int | UnsetType = UNSET


Entry = TypeVar("Entry", bound=Struct)


def split_file(text: mmap.mmap, path: str) -> CocoFile:
    """The lists of a COCO file, as views into `text`.

    Args:
        text: the file.
        path: its name, for messages.

    Raises:
        InputError: the file is no JSON, or lacks one of the lists.
    """
    try:
        return msgspec.json.decode(text, type=CocoFile)
    except msgspec.ValidationError as error:
        raise InputError(f"{path} is not in COCO format: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}") from error


def likely_pieces(text: memoryview, piece: int) -> list[slice]:
    """Where to cut a list of objects, without looking at all of it, so that each piece probably is a list's content.

    If each is one, then the list is all of them together: the first begins where an object does, so it ends where one
    does if it makes a list, and so on.

    Args:
        text: the list, as JSON text.
        piece: bytes of each piece, at most and about.
    """
    pieces, start, end = [], 1, len(text) - 1
    while end - start > piece:
        tail = max(start, start + piece - _TAIL)
        cut = _likely_cut(bytes(text[tail : start + piece]))
        if cut is None:
            break
        stop = tail + cut
        pieces.append(slice(start, stop))
        start = _SEPARATOR.match(text, stop).end()  # type: ignore[union-attr]  # it matches nothing, too
    return [*pieces, slice(start, end)]


def read_entries(
    array: Raw, kind: type[Entry], path: str, check: Callable[[list[dict]], None], piece: int
) -> Iterator[tuple[list[Entry], Callable[[], list[dict]]]]:
    """The entries of one list of a COCO file, piece by piece.

    Args:
        array: the list, as JSON text.
        kind: what each entry must be.
        path: of the file, for messages.
        check: raises `InputError` for the first of plain dicts that is wrong; called where an entry is no `kind`.
        piece: bytes of text that are taken apart at once, more where an entry is longer.

    Yields:
        Entries, and a function that returns the same as Python's `json` makes them of the text.

    Raises:
        InputError: this is no list, or one with something in it that is no `kind`.
    """
    text = memoryview(array)
    if text[:1] != b"[":
        raise InputError(_NO_LIST.format(path))
    decoder = msgspec.json.Decoder(list[kind])  # type: ignore[valid-type]  # known at run time only
    text, start, size = text[1:-1], 0, piece
    while start < len(text):
        part = bytes(text[start : start + size])
        first = _SEPARATOR.match(part).end()  # type: ignore[union-attr]  # it matches nothing, too
        problem, end = None, None
        for cut in (len,) if start + size >= len(text) else (_likely_cut, _exact_cut):
            end = cut(part)
            if end is None:
                continue
            try:
                entries, problem = decoder.decode(b"[" + part[first:end] + b"]"), None
                break
            except msgspec.DecodeError as error:
                problem = error
        if end is None:
            size *= 2
            continue
        plain = functools.partial(plain_entries, b"[" + part[first:end] + b"]", path)
        if problem:
            check(plain())
            raise InputError(f"{path}: {problem}, counted from entry {plain()[0].get('id')!r}")
        if entries:
            yield entries, plain
        start, size = start + end, piece


def plain_entries(array: bytes, path: str) -> list[dict]:
    """A list of objects as Python's `json` reads it.

    Args:
        array: JSON text.
        path: of the file that it is from, for messages.

    Raises:
        InputError: it is none.
    """
    try:
        entries = json.loads(array)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(_NO_LIST.format(path))
    return entries


def _likely_cut(part: bytes) -> int | None:
    """Where the last object ends after which another begins; it may be one inside an entry."""
    ends = [match.start() + 1 for match in _BETWEEN_OBJECTS.finditer(part, max(0, len(part) - _TAIL))]
    return ends[-1] if ends else None


def _exact_cut(part: bytes) -> int | None:
    """Where the last entry ends that is whole; slow, because it looks at every string and brace."""
    depth, end = 0, None
    for match in _STRING_OR_BRACE.finditer(part):
        token = match[0]
        if token == b'"':  # of a string that is cut off
            break
        if token == b"{":
            depth += 1
        elif token == b"}":
            depth -= 1
            if depth == 0:
                end = match.end()
    return end
