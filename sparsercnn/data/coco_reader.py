"""From the text of a COCO file to its columns, checked on the way, by all processors."""

import mmap
import multiprocessing
import operator
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import chain, repeat
from operator import attrgetter

import msgspec
import numpy as np
from msgspec import UNSET, Raw

from ..errors import InputError
from .coco_columns import ABSENT, About, Columns
from .coco_json import LARGEST_AREA, LARGEST_COORDINATE, LARGEST_ID, EntryCheck
from .coco_stream import PIECE, CocoAnnotation, CocoImage, likely_pieces, plain_entries, read_entries, split_file
from .content import Tally

Arrays = dict[str, np.ndarray]
# More wait for the one that collects what they read.
PROCESSES = 8
_ISCROWD = {UNSET: ABSENT, 0: 0, 1: 1}
_WRONG = 2


def read_columns(text: mmap.mmap, path: str, digest: str, piece: int = PIECE) -> Columns:
    """Read a COCO file.

    What is checked and how it is said is as in `check_coco_json`, but for keys that are not read (masks, keypoints)
    and for keys that stand twice in an entry. Types are more strict: 1.0 is no integer.

    Args:
        text: the file.
        path: its name, for messages.
        digest: of the file, for the columns.
        piece: bytes of text that one process takes apart at once.

    Raises:
        InputError: the file is no JSON or not in COCO format, ids repeat or refer to nothing, or a value makes no
            sense.
    """
    file = split_file(text, path)
    check = EntryCheck(path)
    categories = check.categories(plain_entries(bytes(file.categories), path))
    if not categories:
        raise InputError(f"{path} lists no categories")
    category_ids = sorted(categories)
    images = _read_images(file.images, check, piece)
    reader = _AnnotationReader(check, category_ids, images, piece)
    annotations = reader.by_image(reader.read(file.annotations, text))
    names = [categories[i] for i in category_ids]
    tally = _tally(annotations, images)
    return Columns(About(digest, category_ids, names, tally, reader.not_evaluated), **images, **annotations)


def _read_images(array: Raw, check: EntryCheck, piece: int) -> Arrays:
    images: list[CocoImage] = []

    def explain(entries: list[dict]) -> None:
        for i, entry in enumerate(entries, len(images)):
            check.image(i, entry, type(images[0].id if images else entries[0].get("id")))

    for entries, plain in read_entries(array, CocoImage, check.path, explain, piece):
        kinds = set(map(type, map(attrgetter("id"), entries[:1] + images[:1] + entries)))
        sizes = [image.width for image in entries] + [image.height for image in entries]
        are_sizes = 0 < min(sizes) and max(sizes) <= LARGEST_COORDINATE
        if len(kinds) > 1 or not are_sizes or (kinds == {int} and max(abs(int(x.id)) for x in entries) > LARGEST_ID):
            explain(plain())
        images += entries
    if not images:
        raise InputError(f"{check.path} lists no images")
    images.sort(key=attrgetter("id"))
    ids = np.array([image.id for image in images])
    _refuse_repetition(check, "image", ids)
    names = [image.file_name.encode() for image in images]
    return {
        "ids": ids,
        "heights": np.array([image.height for image in images]),
        "widths": np.array([image.width for image in images]),
        "names": np.frombuffer(b"".join(names), np.uint8),
        "name_ends": np.cumsum([len(name) for name in names]),
    }


def _refuse_repetition(check: EntryCheck, kind: str, ids: np.ndarray) -> None:
    """Args: ids: ascending."""
    repeated = ids[1:][ids[1:] == ids[:-1]]
    if len(repeated):
        raise check.fail(kind, 0, {"id": repeated[0].item()}, "stands in the file twice: ids are unique")


class _AnnotationReader:
    """Reads the annotations of one file.

    Args:
        check: names what is wrong.
        category_ids: ascending.
        images: columns of the images.
        piece: bytes of text that one process takes apart at once.

    Attributes:
        not_evaluated: why the COCO metrics cannot be computed, as a message; empty if they can.
    """

    def __init__(self, check: EntryCheck, category_ids: list[int], images: Arrays, piece: int):
        self.check = check
        self.category_ids = np.array(category_ids)
        self.images = images
        self.piece = piece
        self.id_type = str if images["ids"].dtype.kind == "U" else int
        self.not_evaluated = ""

    def read(self, array: Raw, text: mmap.mmap) -> list[Arrays]:
        """Columns piece by piece: "image", place of each annotation's image, "id", and those of `Columns`.

        Args:
            array: the list of annotations, as JSON text.
            text: of which it is a part.
        """
        pieces = self._read_in_parallel(array, text) if sys.platform == "linux" else None
        pieces = pieces or self._read_in_order(array)
        for piece in pieces:
            unfit = piece["id"][~piece.pop("evaluable")]
            if len(unfit) and not self.not_evaluated:
                needed = f"an 'area' of 0 to {LARGEST_AREA:.0f} and an 'iscrowd' of 0 or 1"
                self.not_evaluated = f"{self.check.path}: annotation {unfit[0]} lacks {needed}"
        return pieces

    def _read_in_parallel(self, array: Raw, text: mmap.mmap) -> list[Arrays] | None:
        """None if anything in it needs a closer look."""
        global _task
        read: list[Arrays] = []
        context = multiprocessing.get_context("fork")  # so that all have the text without sending gigabytes
        pieces = likely_pieces(memoryview(array), self.piece)
        _task = self, memoryview(array), text
        text.madvise(mmap.MADV_DONTNEED)
        try:
            with ProcessPoolExecutor(min(PROCESSES, len(os.sched_getaffinity(0))), context) as pool:
                for piece in pool.map(_read_piece, pieces):
                    if piece is None:
                        pool.shutdown(cancel_futures=True)
                        return None
                    read.append(piece)
        finally:
            _task = None
        return read

    def _read_in_order(self, array: Raw) -> list[Arrays]:
        pieces: list[Arrays] = []
        known = set(self.images["ids"].tolist()), set(self.category_ids.tolist())

        def explain(entries: list[dict]) -> None:
            for i, entry in enumerate(entries, sum(len(piece["id"]) for piece in pieces)):
                self.check.annotation(i, entry, *known, False)

        for entries, plain in read_entries(array, CocoAnnotation, self.check.path, explain, self.piece):
            piece = self.columns(entries)
            if piece is None:
                explain(plain())
                raise InputError(f"{self.check.path}: annotation {entries[0].id} or one of those after it is wrong")
            pieces.append(piece)
        return pieces

    def columns(self, entries: Sequence[CocoAnnotation]) -> Arrays | None:
        """Columns of a piece; None if a value in it makes no sense."""
        # Millions go through here: `map` of what is written in C takes a fifth of the time of a loop.
        of = {name: list(map(attrgetter(name), entries)) for name in CocoAnnotation.__struct_fields__}
        flat = list(chain.from_iterable(of["bbox"]))
        try:
            ids = np.array(of["id"], np.int64)
            images = _places(self.images["ids"], of["image_id"], self.id_type)
            classes = _places(self.category_ids, of["category_id"], int)
            boxes = np.array(flat, np.float64).reshape(-1, 4)
            areas = np.array(of["area"], np.float64)
        except OverflowError:
            return None
        iscrowd = np.fromiter(map(_ISCROWD.get, of["iscrowd"], repeat(_WRONG)), np.int8)
        wrong = [abs(ids) > LARGEST_ID, images < 0, classes < 0, iscrowd == _WRONG]
        wrong += [~(abs(boxes) <= LARGEST_COORDINATE), boxes[:, 2:] < 0]
        if any(map(np.any, wrong)) or not set(of["ignore"]) <= {UNSET, 0}:
            return None
        return {
            "id": ids,
            "image": images.astype(np.int32),
            "boxes": boxes,
            "integers": np.fromiter(map(operator.is_, map(type, flat), repeat(int)), bool).reshape(-1, 4).all(1),
            "classes": classes.astype(np.int32),
            "iscrowd": iscrowd,
            "evaluable": (areas >= 0) & (areas <= LARGEST_AREA) & (iscrowd != ABSENT),
        }

    def by_image(self, pieces: list[Arrays]) -> Arrays:
        """The columns of all pieces sorted by image, which then is known from where its annotations end."""
        names = list(pieces[0])
        columns = {name: np.concatenate([piece.pop(name) for piece in pieces]) for name in names}
        ids, images = columns.pop("id"), columns.pop("image")
        ids.sort()
        _refuse_repetition(self.check, "annotation", ids)
        order = np.argsort(images, kind="stable")
        ends = np.cumsum(np.bincount(images, minlength=len(self.images["ids"])))
        return {"ends": ends} | {name: columns.pop(name)[order] for name in list(columns)}


_task: tuple[_AnnotationReader, memoryview, mmap.mmap] | None = None
"""What `_read_piece` reads; for the processes that are forked while it is set."""


def _read_piece(place: slice) -> Arrays | None:
    """Columns of what is probably a list of annotations at this place of the text; None if it is not."""
    assert _task is not None
    reader, array, text = _task
    part = b"[" + bytes(array[place]) + b"]"
    text.madvise(mmap.MADV_DONTNEED)  # or the file would come to lie in memory, piece by piece
    try:
        entries = msgspec.json.decode(part, type=list[CocoAnnotation])
    except msgspec.DecodeError:
        return None
    return reader.columns(entries)


def _places(known: np.ndarray, wanted: list, kind: type) -> np.ndarray:
    """(n,) int64: where in the ascending `known` each of `wanted` stands, -1 where it does not or is no `kind`."""
    if set(map(type, wanted)) != {kind}:
        return np.full(len(wanted), -1)
    values = np.array(wanted, None if kind is str else np.int64)
    places = np.searchsorted(known, values).clip(max=len(known) - 1)
    return np.where(known[places] == values, places, -1)


def _tally(annotations: Arrays, images: Arrays) -> Tally:
    boxes, crowd = annotations["boxes"], annotations["iscrowd"] == 1
    numbers = np.diff(annotations["ends"], prepend=0)
    empty = ~((boxes[:, 2] > 0) & (boxes[:, 3] > 0)) & ~crowd
    outside = np.zeros(len(boxes), bool)
    for axis, side in enumerate(("widths", "heights")):
        start, length = boxes[:, axis], boxes[:, 2 + axis]
        outside |= ~((start < np.repeat(images[side], numbers)) & (start + length > 0))
    return Tally(len(boxes), int(crowd.sum()), int(empty.sum()), int((outside & ~empty & ~crowd).sum()))
