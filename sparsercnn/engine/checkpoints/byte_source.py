"""A file that is read once from front to back, and never asked for more than it has."""

from collections.abc import Callable
from typing import Any, BinaryIO

import torch
from torch import Tensor

from .pickled_objects import DamagedError

# Bytes passed over at a time.
CHUNK = 1 << 20


class ByteSource:
    """Reads a file from its first byte on.

    Args:
        file: open, at its first byte.
        size: bytes in it; what is appended while it is read does not count.
        on_read: is given everything that is read, in order.

    Attributes:
        position: bytes read so far.
    """

    def __init__(self, file: BinaryIO, size: int, on_read: Callable[[Any], object] | None = None):
        self.file = file
        self.size = size
        self.on_read = on_read
        self.position = 0

    @property
    def left(self) -> int:
        """Bytes not read yet."""
        return self.size - self.position

    def read(self, count: int, /) -> bytes:
        """The next `count` bytes, or as many as there are."""
        return self._note(self.file.read(min(count, self.left)))

    def readline(self) -> bytes:
        """The bytes up to the next line feed and with it."""
        return self._note(self.file.readline(self.left))

    def take(self, count: int) -> bytes:
        """The next `count` bytes.

        Raises:
            DamagedError: there are fewer.
        """
        data = self.read(count)
        if len(data) != count:
            raise DamagedError("it ends too early")
        return data

    def fill(self, content: Tensor) -> None:
        """Read the next bytes into a (N,) uint8 tensor.

        Raises:
            DamagedError: there are fewer than N.
        """
        view = content.numpy().data
        if len(view) > self.left or self.file.readinto(view) != len(view):  # type: ignore[attr-defined]
            raise DamagedError("it ends too early")
        self._note(view)

    def tensor(self, count: int) -> Tensor:
        """The next `count` bytes, (count,) uint8, in memory of their own.

        Raises:
            DamagedError: there are fewer.
        """
        if count > self.left:
            raise DamagedError("it ends too early")
        content = torch.empty(count, dtype=torch.uint8)
        self.fill(content)
        return content

    def skip_to(self, position: int) -> None:
        """Read on up to a position.

        Raises:
            DamagedError: it is behind what was read, or behind the end.
        """
        if not self.position <= position <= self.size:
            raise DamagedError("its parts overlap")
        while self.position < position:
            self.take(min(CHUNK, position - self.position))

    def _note(self, data: Any) -> Any:
        if self.on_read is not None:
            self.on_read(data)
        self.position += len(data)
        return data
