"""Files that appear whole or not at all, so that a kill or a full disk leaves the previous ones as they were."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from typing import BinaryIO

from .errors import InputError

PARTIAL = ".partial"
"""Ending of the name that a file has until it is whole."""
# Bytes that are read at once.
_BLOCK = 1 << 20


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
        refusal = _refusal(error)
        if refusal is None:
            raise
        raise CannotWriteError(f"cannot write {path}: {refusal.strerror or refusal}") from error
    _sync_folder(os.path.dirname(os.path.abspath(path)))


def write_json(path: str | os.PathLike[str], content: object) -> None:
    """Write plain values as JSON, to be read by people too, as `write_whole` does.

    Raises:
        CannotWriteError: the file system refused.
    """
    text = json.dumps(content, indent=2)
    write_whole(path, lambda file: file.write(text.encode()))


def _refusal(error: BaseException | None) -> OSError | None:
    """The error of the file system, which `torch.save` replaces by one about positions in the file."""
    while isinstance(error, Exception) and not isinstance(error, OSError):
        error = error.__context__
    return error if isinstance(error, OSError) else None


def _sync_folder(folder: str) -> None:
    """Make the file's new name as durable as its content."""
    # Some systems cannot open a folder and some file systems cannot sync one: they have their own ways.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def file_digest(file: BinaryIO) -> str:
    """SHA-256 of a file's content from its current position on, in hexadecimal digits."""
    digest = hashlib.sha256()
    while block := file.read(_BLOCK):
        digest.update(block)
    return digest.hexdigest()
