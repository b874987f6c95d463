"""PyTorch's zip archives, written with a checksum of the whole file, and read in one pass that compares it.

The checksum is the archive's comment, at the end of the file, which PyTorch and other zip programs pass over: the
SHA-256 of the archive as it was without comment. It covers every byte, those between the records too. An archive of
another program has a CRC-32 for the content of each record, which is compared instead.
"""

import hashlib
import io
import stat
import struct
import sys
import zipfile
import zlib
from typing import Any, BinaryIO

import torch
from torch import Tensor

from .byte_source import ByteSource
from .pickled_objects import DamagedError, ForeignObjectError
from .safe_pickle import check_plain, load_pickle

LOCAL_HEADER, LOCAL_SIGNATURE = struct.Struct("<4s22x2H"), b"PK\x03\x04"
# Signature, size of the directory, length of the comment.
END, END_SIGNATURE = struct.Struct("<4s8xL4xH"), b"PK\x05\x06"
# Before it in large archives: the end in 64 bits, of which the size of the directory, and a pointer to it.
LARGE_END, LARGE_SIGNATURE = struct.Struct("<40xQ8x4s16x"), b"PK\x06\x07"
# A record takes about 100 bytes of the directory, and ten times that in memory.
MAX_DIRECTORY = 16 << 20
SEAL = b"sha256 "
SEAL_LENGTH = len(SEAL) + 2 * hashlib.sha256().digest_size


class _Hashed:
    """Passes what is written on to a file, and keeps its digest."""

    def __init__(self, file: BinaryIO):
        self.file = file
        self.digest = hashlib.sha256()

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def write_archive(content: object, file: BinaryIO) -> None:
    """Save as `torch.save` does, with a checksum.

    Args:
        content: what to save.
        file: open for writing, seekable and empty.

    Raises:
        ValueError: `read_archive` would refuse the content.
    """
    check_plain(content)
    hashed = _Hashed(file)
    torch.save(content, hashed)  # type: ignore[arg-type]
    seal = SEAL + hashed.digest.hexdigest().encode()
    file.seek(-2, io.SEEK_END)  # the length of the comment
    file.write(struct.pack("<H", len(seal)) + seal)


def read_archive(file: BinaryIO, size: int) -> Any:
    """What an archive of `torch.save` holds; see `load_pickle`.

    Args:
        file: open for reading.
        size: bytes in it.

    Raises:
        ForeignObjectError: it needs code.
        Exception: it is damaged; `DamagedError` where a check of ours notices it.
    """
    seal = _seal(file, size)
    records = sorted(zipfile.ZipFile(file).infolist(), key=lambda record: record.header_offset)
    # An archive written after `torch.serialization.set_crc32_options(False)` has zeros.
    has_checksums = any(record.CRC for record in records)
    file.seek(0)
    digest = hashlib.sha256()
    source = ByteSource(file, size, digest.update if seal else None)
    contents: dict[str, Tensor] = {}
    for record in records:
        name = _name(record)
        if name in contents:
            raise DamagedError("two of its records have one name")
        contents[name] = content = _content(source, record)
        if not seal and has_checksums and zlib.crc32(content.numpy().data) != record.CRC:
            raise DamagedError("a checksum does not match its content")
    source.skip_to(size - len(seal) - 2)
    digest.update(b"\0\0")  # the comment was of no length
    if seal and seal != SEAL + digest.hexdigest().encode():
        raise DamagedError("its checksum does not match its content")
    return _unpickle({name.partition("/")[2]: content for name, content in contents.items()})


def _seal(file: BinaryIO, size: int) -> bytes:
    """The comment, which is a checksum or empty."""
    for length in (SEAL_LENGTH, 0):
        ahead = LARGE_END.size + END.size
        file.seek(max(0, size - length - ahead))
        tail = file.read(ahead + length).rjust(ahead + length, b"\0")
        signature, directory, comment_length = END.unpack_from(tail, LARGE_END.size)
        if signature == END_SIGNATURE and comment_length == length:
            large_directory, signature = LARGE_END.unpack_from(tail)
            if max(directory, large_directory if signature == LARGE_SIGNATURE else 0) > MAX_DIRECTORY:
                raise DamagedError("its directory is too large")
            return tail[ahead:]
    raise DamagedError("it has no end")


def _name(record: zipfile.ZipInfo) -> str:
    """The name of a record, of a kind that archives of `torch.save` have."""
    name = record.orig_filename
    if any(part in ("", ".", "..") for part in name.split("/")) or not name.isprintable() or "\\" in name:
        raise DamagedError("the name of a record is none of PyTorch's")
    plain = record.compress_type == zipfile.ZIP_STORED and record.file_size == record.compress_size
    if not plain or record.flag_bits & 1 or stat.S_ISLNK(record.external_attr >> 16):
        raise DamagedError("a record is compressed, encrypted or a link")
    return name


def _content(source: ByteSource, record: zipfile.ZipInfo) -> Tensor:
    source.skip_to(record.header_offset)
    signature, name_length, extra_length = LOCAL_HEADER.unpack(source.take(LOCAL_HEADER.size))
    if signature != LOCAL_SIGNATURE:
        raise DamagedError("a record is not where the directory says")
    source.take(name_length + extra_length)
    return source.tensor(record.file_size)


def _unpickle(contents: dict[str, Tensor]) -> Any:
    if "constants.pkl" in contents:
        raise ForeignObjectError("a TorchScript program")
    if "data.pkl" not in contents:
        raise DamagedError("it is no archive of PyTorch")
    if "byteorder" in contents and contents["byteorder"].numpy().tobytes() != sys.byteorder.encode():
        raise DamagedError("it is of a machine with another byte order")

    def find_storage(key: str, nbytes: int, /) -> Tensor:
        content = contents.get(f"data/{key}")
        if content is None or len(content) != nbytes:
            raise DamagedError("a tensor's content is missing")
        return content

    pickled = contents["data.pkl"].numpy().tobytes()
    return load_pickle(io.BytesIO(pickled), len(pickled), find_storage)
