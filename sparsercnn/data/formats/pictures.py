"""Finds the pictures that annotations name, wherever they lie below a folder."""

import os
from collections import defaultdict
from pathlib import Path, PurePosixPath, PureWindowsPath

from ...errors import InputError
from ..image_files import brief, some

SUFFIXES = {".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".jp2", ".avif"}

# What is in the names of folders that hold pictures.
USUAL_FOLDERS = ("image", "img", "photo", "picture")


class Pictures:
    """All picture files below a folder, found by the name or by the stem that an annotation gives.

    Args:
        folder: is searched with all folders in it; links to folders are not followed.

    Attributes:
        paths: all pictures, sorted.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.paths: list[Path] = []
        for parent, folders, names in os.walk(folder):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            self.paths += [Path(parent, n) for n in sorted(names) if Path(n).suffix.lower() in SUFFIXES and n[0] != "."]
        self._by_name: dict[str, list[Path]] = defaultdict(list)
        self._by_stem: dict[str, list[Path]] = defaultdict(list)
        for path in self.paths:
            self._by_name[path.name].append(path)
            self._by_stem[path.stem].append(path)

    def named(self, name: str, where: str, near: Path | None = None) -> Path:
        """The picture of a name: a file name, or a path of which the end counts where the beginning is another's.

        Args:
            name: as the annotation has it; paths of Windows too.
            where: file and entry, for messages.
            near: folder that is looked into first; None for that of all pictures.

        Raises:
            InputError: there is no such picture, or several equally good ones.
        """
        parts = (PureWindowsPath(name) if "\\" in name else PurePosixPath(name)).parts
        parts = tuple(part for part in parts if part not in ("..", "/"))
        if not parts:
            raise InputError(f"{where} names no picture")
        # The same picture in another format, or a name without its suffix, where no file has the very name.
        last = parts[-1]
        candidates = self._by_name.get(last) or self._by_stem.get(last) or self._by_stem.get(Path(last).stem, [])
        return self._best(candidates, parts, near or self.folder, where)

    def of_stem(self, path: Path, where: str, name: str = "") -> Path:
        """The picture that has the name of an annotation file but for the suffix.

        Args:
            path: of the annotation file.
            where: file and entry, for messages.
            name: that the file says, often of an earlier place and another format; it decides between several.

        Raises:
            InputError: as for `named`.
        """
        parts = PurePosixPath(name).parts or (path.stem,)
        candidates = self._by_stem.get(path.stem, [])
        same_name = [candidate for candidate in candidates if candidate.name == parts[-1]]
        return self._best(same_name or candidates, parts, path.parent, where)

    def _best(self, candidates: list[Path], parts: tuple[str, ...], near: Path, where: str) -> Path:
        if not candidates:
            raise InputError(f"{where}: there is no picture '{brief(parts[-1])}' in {self.folder} or below it")
        # A picture beside the annotation, then one whose folders are called as the name says or as the annotation's,
        # then one in a folder of pictures rather than of masks.
        by_rank = defaultdict(list)
        for path in candidates:
            is_usual = any(word in path.parent.name.lower() for word in USUAL_FOLDERS)
            rank = path.parent == near, _common(path.parts[:-1], parts[:-1]), _shared(path, near), is_usual
            by_rank[rank].append(path)
        best = by_rank[max(by_rank)]
        if len(best) > 1:
            raise InputError(f"{where}: several pictures could be meant by '{brief(parts[-1])}': {some(best)}")
        return best[0]


def _common(path: tuple[str, ...], wanted: tuple[str, ...]) -> int:
    """How many of the last folders of both are called the same."""
    count = 0
    for ours, theirs in zip(reversed(path), reversed(wanted), strict=False):
        if ours != theirs:
            break
        count += 1
    return count


def _shared(path: Path, near: Path) -> int:
    """How many folders of a path are called as one of `near`, such as "train" in images/train and labels/train."""
    return len(set(path.parts[:-1]) & set(near.parts))
