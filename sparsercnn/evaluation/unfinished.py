"""Outputs of an evaluation that is not finished, on disk: what was computed before a kill need not be again."""

import contextlib
import functools
import glob
import logging
import os
import shutil
import time
import uuid
import zipfile
import zlib
from collections.abc import Callable, Iterable

import numpy as np

from ..files import write_whole
from .outputs import Arrays, ImageOutput, pack, unpack

# Seconds of work that are lost at most. Shorter evaluations write nothing.
PERIOD = 5.0

logger = logging.getLogger(__name__)


class UnfinishedEvaluation:
    """The folder `FOLDER/unfinished-DIGEST`, which exists while an evaluation runs and after it was killed.

    Each of its files holds outputs for some images; it is there whole or not at all, and with checksums.

    Args:
        folder: of the evaluation's results.
        digest: computes what tells one evaluation from another: model, settings, data. Called only if need be, because
            it takes a while.
    """

    def __init__(self, folder: str, digest: Callable[[], str]):
        self.folder = folder
        self.digest = functools.cache(digest)
        self.waiting: list[ImageOutput] = []
        self.written = time.monotonic()

    @property
    def _path(self) -> str:
        return os.path.join(self.folder, f"unfinished-{self.digest()}")

    def _all(self) -> list[str]:
        return glob.glob(os.path.join(glob.escape(self.folder), "unfinished-*"))

    def read(self) -> list[ImageOutput]:
        """The outputs of the same evaluation that are on disk. Those of other evaluations are removed."""
        if not self._all():
            return []
        for other in self._all():
            if other != self._path:
                shutil.rmtree(other, ignore_errors=True)
        by_position: dict[int, ImageOutput] = {}
        for file in sorted(glob.glob(os.path.join(glob.escape(self._path), "*.npz"))):
            by_position |= {output.position: output for output in _read(file)}
        return list(by_position.values())

    def add(self, outputs: Iterable[ImageOutput]) -> None:
        """Take in outputs, and write all that wait if some time has passed."""
        self.waiting += outputs
        if time.monotonic() - self.written >= PERIOD:
            os.makedirs(self._path, exist_ok=True)
            arrays = pack(self.waiting)
            # A name that no other process has, also if it is of another machine or of an earlier attempt.
            path = os.path.join(self._path, f"{uuid.uuid4().hex}.npz")
            write_whole(path, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]
            self.waiting, self.written = [], time.monotonic()

    def remove(self) -> None:
        """Forget the outputs, here or left behind: the evaluation is finished."""
        for path in self._all():
            shutil.rmtree(path, ignore_errors=True)


def _read(file: str) -> list[ImageOutput]:
    try:
        with np.load(file, allow_pickle=False) as content:
            arrays: Arrays = dict(content)
        return list(unpack(arrays))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        logger.warning(f"{file} is damaged, and its images are evaluated again: {error}")
        with contextlib.suppress(OSError):
            os.remove(file)
        return []
