"""Files of tensors in any format, read once and without running code, whatever is in them.

Formats: PyTorch's archives and its files from before 1.6 (`.pth`), pickles of NumPy arrays (the `.pkl` of detectron2's
model zoo) and safetensors. What a file is shows in its content.
"""

import json
import os
import stat
import struct
import sys
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ...errors import InputError
from .archive import LOCAL_SIGNATURE, read_archive
from .byte_source import ByteSource
from .pickled_objects import DamagedError, ForeignObjectError, check_dimensions, natural
from .safe_pickle import load_pickle

# The first value in files that PyTorch wrote before 1.6, and the second.
LEGACY_MAGIC, LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001
# Of any pickle since protocol 2, of Python 2.3.
PICKLE_START = b"\x80"
# A tensor takes about 100 bytes of the header, and ten times that in memory.
MAX_HEADER = 16 << 20
SAFETENSORS_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class UnusableFileError(InputError):
    """A file of tensors is damaged, is something else, needs code, or cannot be read."""


def read_tensors(path: str) -> Any:
    """What a file of tensors holds: a dict in any sensible case, with tensors on the CPU.

    It takes the memory of the tensors, and for a hostile file at most half a gigabyte more.

    Args:
        path: a local file.

    Raises:
        UnusableFileError: the file is none, or not whole, or its content is more than tensors, arrays and plain values.
    """
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UnusableFileError(f"{path} is not a file")
            return _read(file, status.st_size)
    except UnusableFileError:
        raise
    except OSError as error:
        raise UnusableFileError(f"{path} cannot be read: {error.strerror or error}") from error
    except MemoryError as error:
        raise UnusableFileError(f"{path} does not fit into memory") from error
    except ForeignObjectError as error:
        raise UnusableFileError(
            f"{path} holds Python objects besides tensors ({_one_line(error)}); loading it could run any code, so it "
            "is refused. Save its state dict alone and load that"
        ) from error
    except Exception as error:  # what goes wrong in damaged bytes cannot be listed
        reason = f": {_one_line(error)}" if isinstance(error, DamagedError) else ""
        raise UnusableFileError(f"{path} is damaged or not a checkpoint{reason}") from error


def _one_line(error: Exception) -> str:
    """The message, which may quote the file, short and without control characters."""
    return ascii(str(error))[1:-1][:100]


def _read(file: BinaryIO, size: int) -> Any:
    start = file.read(9)
    file.seek(0)
    if start.startswith(LOCAL_SIGNATURE):
        return read_archive(file, size)
    source = ByteSource(file, size)
    if start.endswith(b"{") and int.from_bytes(start[:8], "little") < size:
        return _read_safetensors(source)
    if not start.startswith(PICKLE_START):
        raise DamagedError("it is neither an archive or pickle of tensors nor safetensors")
    value = load_pickle(source, size)
    if type(value) is int and value == LEGACY_MAGIC:
        value = _read_legacy(source)
    if source.left:
        raise DamagedError("something follows its end")
    return value


def _read_legacy(source: ByteSource) -> Any:
    """What follows the magic number: pickles of a version, of the system, of the value and of its storages' keys."""
    version, system = load_pickle(source, source.left), load_pickle(source, source.left)
    if version != LEGACY_VERSION or system["little_endian"] is not (sys.byteorder == "little"):
        raise DamagedError("it is of an unknown version or of a machine with another byte order")
    storages: dict[str, Tensor] = {}
    room = source.left

    def make_storage(key: str, nbytes: int, /) -> Tensor:
        nonlocal room
        if key not in storages:
            room -= nbytes
            if room < 0:
                raise DamagedError("its tensors are larger than the file")
            storages[key] = torch.empty(nbytes, dtype=torch.uint8)
        if len(storages[key]) != nbytes:
            raise DamagedError("a tensor's content has two sizes")
        return storages[key]

    value = load_pickle(source, source.left, make_storage)
    keys = load_pickle(source, source.left)
    if sorted(keys) != sorted(storages):
        raise DamagedError("a tensor's content is missing")
    for key in keys:
        (numel,) = struct.unpack("<q", source.take(8))
        if len(storages[key]) % (numel or 1) or bool(numel) != bool(len(storages[key])):
            raise DamagedError("a tensor's content has two sizes")
        source.fill(storages[key])
    return value


def _read_safetensors(source: ByteSource) -> dict[str, Tensor]:
    (length,) = struct.unpack("<Q", source.take(8))
    if length > MAX_HEADER:
        raise DamagedError("its header is too large")
    header = json.loads(source.take(length))
    header.pop("__metadata__", None)
    start = source.position
    tensors = {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, end = map(natural, entry["data_offsets"])
        dtype, shape = SAFETENSORS_TYPES[entry["dtype"]], [natural(n) for n in entry["shape"]]
        check_dimensions(shape)
        if start + begin != source.position:
            raise DamagedError("its tensors overlap, or there is something between them")
        tensors[name] = source.tensor(natural(end - begin)).view(dtype).reshape(shape)
    if source.left:
        raise DamagedError("something follows its end")
    return {name: tensors[name] for name in header}
