"""Files that appear whole or not at all, so that a kill or a full disk leaves the previous ones as they were."""

import contextlib
import os
from collections.abc import Callable
from typing import BinaryIO

from .errors import InputError

PARTIAL = ".partial"
"""Ending of the name that a file has until it is whole."""


class CannotWriteError(InputError):
    """A file could not be written: the disk is full, the folder is gone, a quota is used up."""


def write_whole(path: str | os.PathLike[str], write: Callable[[BinaryIO], object]) -> None:
    """Write a file that appears under its name, and survives a power failure, only once it is complete.

    A process that is killed meanwhile leaves a stray `PATH.partial` and the previous `PATH` untouched.

    Args:
        path: the file, replaced if it exists. Its folder must exist.
        write: writes the content to the binary file that it is given.

    Raises:
        CannotWriteError: the file system refused; the partial file is removed.
    """
    partial = f"{os.fspath(path)}{PARTIAL}"
    try:
        with open(partial, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.remove(partial)
        if isinstance(error, OSError):
            raise CannotWriteError(f"cannot write {path}: {error.strerror or error}") from error
        raise
    _sync_folder(os.path.dirname(os.path.abspath(path)))


def _sync_folder(folder: str) -> None:
    """Make the file's new name as durable as its content."""
    # Some systems cannot open a folder and some file systems cannot sync one: they have their own ways.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
