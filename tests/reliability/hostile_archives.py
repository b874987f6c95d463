"""Files of tensors that must be refused for how they are packed: archives, old files, safetensors and others."""

import io
import json
import os
import pickle
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch

from .hostile_pickles import PROTOCOL, long_integer, text

Write = Callable[[Path], object]
FILES: dict[str, tuple[str, Write]] = {}
"""Ending of the name, and the function that writes each file."""

MODEL = {"model": {"weight": torch.ones(2, 2)}}
LEGACY_START = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
LEGACY_SYSTEM = pickle.dumps({"protocol_version": 1001, "little_endian": True, "type_sizes": {}}, 2)
GIANT = 1 << 40


def hostile(ending: str) -> Callable[[Write], Write]:
    """Register a function that writes a file."""

    def register(write: Write) -> Write:
        FILES[write.__name__] = ending, write
        return write

    return register


def records() -> dict[str, bytes]:
    """Name and content of the records of a good archive."""
    buffer = io.BytesIO()
    torch.save(MODEL, buffer)
    with zipfile.ZipFile(buffer) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_records(path: Path, contents: dict[str, bytes], **options: int) -> None:
    """Write an archive with these records."""
    with zipfile.ZipFile(path, "w", **options) as archive:  # type: ignore[arg-type]
        for name, content in contents.items():
            archive.writestr(name, content)


def write_pickle(path: Path, pickled: bytes) -> None:
    """Write an archive whose pickle is this one, with a storage "0" of four bytes."""
    write_records(path, {**records(), "archive/data.pkl": pickled, "archive/data/0": b"abcd"})


def storage(numel: bytes = b"K\x01", key: str = "0") -> bytes:
    """Instructions that push a storage of float32."""
    return b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + numel + b"tQ"


def tensor(offset: bytes, size: bytes, stride: bytes, function: str = "_rebuild_tensor_v2") -> bytes:
    """A pickle of a model with one tensor; numbers are instructions."""
    rebuild = f"ctorch._utils\n{function}\n(".encode() + storage() + offset + size + stride + b"\x89NtR"
    return PROTOCOL + b"}" + text("model") + b"}" + text("weight") + rebuild + b"ss."


@hostile("pth")
def tensor_beyond_its_storage(path: Path) -> None:
    write_pickle(path, tensor(b"K\x00", b"K\x64\x85", b"K\x01\x85"))


@hostile("pth")
def tensor_before_its_storage(path: Path) -> None:
    write_pickle(path, tensor(b"J\xff\xff\xff\xff", b"K\x01\x85", b"K\x01\x85"))


@hostile("pth")
def tensor_of_one_number_repeated(path: Path) -> None:
    write_pickle(path, tensor(b"K\x00", long_integer(GIANT) + b"\x85", b"K\x00\x85"))


@hostile("pth")
def tensor_whose_size_overflows(path: Path) -> None:
    write_pickle(path, tensor(b"K\x00", long_integer(1 << 63) + b"K\x02\x86", b"K\x00K\x00\x86"))


@hostile("pth")
def tensor_of_strings(path: Path) -> None:
    write_pickle(path, tensor(text("a"), text("b"), text("c")))


for kind in ("_rebuild_sparse_tensor", "_rebuild_qtensor", "_rebuild_meta_tensor_no_storage"):

    @hostile("pth")
    def other_tensor(path: Path, kind: str = kind) -> None:
        write_pickle(path, tensor(b"K\x00", b"K\x01\x85", b"K\x01\x85", kind))

    FILES[kind] = FILES.pop("other_tensor")


@hostile("pth")
def giant_storage(path: Path) -> None:
    write_pickle(path, PROTOCOL + storage(long_integer(GIANT)) + b".")


@hostile("pth")
def storage_of_another_file(path: Path) -> None:
    write_pickle(path, PROTOCOL + storage(key="../../../../etc/passwd") + b".")


@hostile("pth")
def giant_storage_of_an_old_file(path: Path) -> None:
    path.write_bytes(LEGACY_START + LEGACY_SYSTEM + PROTOCOL + storage(long_integer(GIANT)) + b".")


@hostile("pth")
def many_storages_of_an_old_file(path: Path) -> None:
    pushed = b"".join(storage(long_integer(1 << 30), str(key)) for key in range(1000))
    path.write_bytes(LEGACY_START + LEGACY_SYSTEM + PROTOCOL + b"(" + pushed + b"t.")


@hostile("pth")
def code_in_the_system_of_an_old_file(path: Path) -> None:
    evidence = path.with_suffix(".evidence")
    path.write_bytes(LEGACY_START + PROTOCOL + b"cos\nmkdir\n" + text(str(evidence)) + b"\x85R.")


@hostile("pth")
def old_tar_file(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        link = tarfile.TarInfo("storages")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)


@hostile("pth")
def torchscript(path: Path) -> None:
    code = b"def forward(self, x):\n  return x\n"
    write_records(path, {**records(), "archive/constants.pkl": PROTOCOL + b").", "archive/code/m.py": code})


@hostile("pth")
def compressed_bomb(path: Path) -> None:
    write_records(path, {**records(), "archive/data/0": bytes(1 << 28)}, compression=zipfile.ZIP_DEFLATED)


@hostile("pth")
def compressed_pickle_bomb(path: Path) -> None:
    bomb = PROTOCOL + b"(" + b"\x8f" * (1 << 28)
    write_records(path, {**records(), "archive/data.pkl": bomb}, compression=zipfile.ZIP_DEFLATED)


@hostile("pth")
def archive_in_an_archive(path: Path) -> None:
    torch.save(MODEL, path)
    write_records(path, {"archive/data.pkl": path.read_bytes()})


@hostile("pth")
def two_records_of_one_name(path: Path) -> None:
    write_records(path, {**records(), "archive/data.pkM": b"."})
    path.write_bytes(path.read_bytes().replace(b"archive/data.pkM", b"archive/data.pkl"))


@hostile("pth")
def record_outside_of_the_archive(path: Path) -> None:
    write_records(path, {**records(), "archive/../../../evidence": b"x"})


@hostile("pth")
def record_that_is_a_link(path: Path) -> None:
    write_records(path, records())
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("archive/data/1")
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")


@hostile("pth")
def encrypted_record(path: Path) -> None:
    write_records(path, records())
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)


def repeated_directory(path: Path, entries: int) -> None:
    """An archive whose directory has so many entries for one and the same record, under names of their own."""
    content = bytes(1 << 20)
    write_records(path, {"archive/00000000": content})
    data = path.read_bytes()
    start = data.index(b"PK\x01\x02")
    entry, end = data[start : data.index(b"PK\x05\x06")], data[data.index(b"PK\x05\x06") :]
    names = (f"archive/{i:08d}".encode() for i in range(entries))
    directory = b"".join(entry.replace(b"archive/00000000", name) for name in names)
    count = min(entries, 0xFFFF)
    end = end[:8] + struct.pack("<2H2L", count, count, len(directory), start) + end[20:]
    path.write_bytes(data[:start] + directory + end)


@hostile("pth")
def records_that_overlap(path: Path) -> None:
    repeated_directory(path, 4000)


@hostile("pth")
def directory_of_a_million(path: Path) -> None:
    repeated_directory(path, 1_000_000)


@hostile("pth")
def giant_directory(path: Path) -> None:
    write_records(path, records())
    data = bytearray(path.read_bytes())
    data[-10:-6] = b"\xf0\xff\xff\xff"
    path.write_bytes(data)


@hostile("pth")
def giant_directory_of_a_large_archive(path: Path) -> None:
    write_records(path, records())
    data = path.read_bytes()
    large = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 5, 5, GIANT, 0)
    pointer = struct.pack("<4sLQL", b"PK\x06\x07", 0, len(data) - 22, 1)
    path.write_bytes(data[:-22] + large + pointer + data[-22:])


@hostile("pth")
def archive_with_something_behind(path: Path) -> None:
    torch.save(MODEL, path)
    path.write_bytes(path.read_bytes() + b"PK")


@hostile("pth")
def link_to_an_endless_device(path: Path) -> None:
    os.symlink("/dev/zero", path)


def write_safetensors(path: Path, header: bytes, content: bytes = b"", length: int | None = None) -> None:
    path.write_bytes((len(header) if length is None else length).to_bytes(8, "little") + header + content)


def entry(begin: int, end: int, shape: list, dtype: str = "F32") -> dict:
    """What a header says of one tensor."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@hostile("safetensors")
def header_longer_than_the_file(path: Path) -> None:
    write_safetensors(path, b"{}", length=GIANT)


@hostile("safetensors")
def header_of_many_megabytes(path: Path) -> None:
    write_safetensors(path, b"{" + b" " * (17 << 20) + b"}")


@hostile("safetensors")
def header_of_deep_lists(path: Path) -> None:
    write_safetensors(path, b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}")


@hostile("safetensors")
def header_that_is_a_number(path: Path) -> None:
    write_safetensors(path, b'{"a":' + b"9" * 10_000 + b"}")


for name, entries in {
    "safetensors_that_overlap": {"a": entry(0, 8, [2]), "b": entry(4, 12, [2])},
    "safetensors_that_repeat": {name: entry(0, 12, [3]) for name in map(str, range(1000))},
    "safetensors_beyond_the_file": {"a": entry(0, GIANT, [GIANT // 4])},
    "safetensors_larger_than_their_content": {"a": entry(0, 12, [GIANT])},
    "safetensors_of_negative_size": {"a": entry(0, -4, [-1])},
    "safetensors_of_an_unknown_type": {"a": entry(0, 12, [3], "__import__('os')")},
}.items():
    FILES[name] = (
        "safetensors",
        lambda path, entries=entries: write_safetensors(path, json.dumps(entries).encode(), bytes(12)),
    )
