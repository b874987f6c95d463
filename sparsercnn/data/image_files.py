"""Checks that the files which annotations name are there, inside of the folder that was given, and readable."""

import math
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from ..errors import InputError, one_line
from .images import read_image

NAMES_SHOWN = 5
LONGEST_NAME = 160  # characters
# Images of a data set that are decoded: all of a small one, a sample of a large one, where all would take minutes.
IMAGES_READ = 500
# Each may hold an image of INPUT.MAX_PIXELS.
READING_THREADS = 8


def find_files(
    folder: str | None, names: Sequence[str], ids: Sequence[int | str], source: str
) -> tuple[list[str], list[str]]:
    """Find the files of a folder, and check that neither their names nor links lead out of it.

    Args:
        folder: may be a link itself. None: the files may lie anywhere.
        names: relative to `folder`, or absolute paths inside of it.
        ids: of the images that the files belong to, for messages.
        source: annotation file that names them, for messages.

    Returns:
        Their paths, and those of them that are missing.

    Raises:
        InputError: a file lies elsewhere, or in a folder that is not there.
    """
    root = os.sep if folder is None else os.path.realpath(folder)
    paths = [os.path.join(folder or "", name) for name in names]
    by_folder: dict[str, dict[str, int]] = defaultdict(dict)
    for i, path in enumerate(paths):
        if not _is_a_name(path):
            raise _refused(names[i], ids[i], source, "has a name that no file can have")
        parent, base = os.path.split(path)
        by_folder[parent][base] = i
    missing = []
    leaves = f"leads out of the folder {folder}; name a folder that holds all files"
    for parent, members in by_folder.items():
        i = next(iter(members.values()))
        if not _is_inside(os.path.realpath(parent or "."), root):
            raise _refused(names[i], ids[i], source, leaves)
        if not os.path.isdir(parent or "."):
            raise InputError(f"{source}: image {ids[i]!r} lies in a folder that is not there, {brief(parent)}")
        # One listing is much faster than asking for every file.
        with os.scandir(parent or ".") as entries:
            is_link = {entry.name: entry.is_symlink() for entry in entries}
        for base, i in members.items():
            if base not in is_link:
                missing.append(paths[i])
            elif is_link[base] and not _is_inside(os.path.realpath(paths[i]), root):
                raise _refused(names[i], ids[i], source, leaves)
    return paths, missing


def _is_inside(path: str, root: str) -> bool:
    return path == root or path.startswith(root if root.endswith(os.sep) else root + os.sep)


def _is_a_name(path: str) -> bool:
    try:
        return b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:  # half a character, as JSON can write it
        return False


def _refused(name: str, image_id: object, source: str, why: str) -> InputError:
    return InputError(f"{source}: the file of image {image_id!r}, '{brief(name)}', {why}")


def find_unreadable(
    paths: Sequence[str], sizes: Sequence[tuple[float, float]], source: str, max_pixels: int
) -> Iterator[str]:
    """What is wrong with images, of a sample of at most `IMAGES_READ`: it cannot be read, or has another size.

    Args:
        paths: of the image files.
        sizes: width and height of each, as the annotations say; empty if they do not.
        source: annotation file, for messages.
        max_pixels: see `read_image`.

    Returns:
        A message for each.
    """

    def problem(i: int) -> str:
        try:
            height, width = read_image(paths[i], "RGB", max_pixels).shape[:2]
        except InputError as error:
            return f"{source}: {error}"
        if not sizes or (width, height) == sizes[i]:
            return ""
        return f"{source} says that {paths[i]} has {sizes[i][0]}×{sizes[i][1]} pixels, but it has {width}×{height}"

    sample = range(0, len(paths), math.ceil(len(paths) / IMAGES_READ) or 1)
    with ThreadPoolExecutor(READING_THREADS) as pool:
        yield from filter(None, pool.map(problem, sample))


def brief(name: object) -> str:
    """A name for a message, without its middle if it is long."""
    text, half = one_line(str(name)), LONGEST_NAME // 2
    return text if len(text) <= LONGEST_NAME else f"{text[:half]}…{text[-half:]}"


def some(names: Sequence[object]) -> str:
    """The first `NAMES_SHOWN` of these names, for a message."""
    return ", ".join(map(brief, names[:NAMES_SHOWN])) + (", …" if len(names) > NAMES_SHOWN else "")
