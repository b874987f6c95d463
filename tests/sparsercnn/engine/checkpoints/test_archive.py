import collections
import io
import random
import zipfile

import pytest
import torch

from sparsercnn.engine.checkpoints.archive import read_archive, write_archive

base = torch.arange(12, dtype=torch.float32)
CONTENT = {
    "model": collections.OrderedDict(
        weight=base.reshape(3, 4),
        transposed=base.reshape(3, 4).t(),
        part=base[2:10:3],
        empty=torch.empty(0, 3),
        number=torch.tensor(5),
        half=torch.rand(3).half(),
        bfloat=torch.rand(3).bfloat16(),
        flags=torch.tensor([True, False]),
        complex=torch.rand(2, dtype=torch.complex64),
        small=torch.ones(4).to(torch.float8_e4m3fn),
        parameter=torch.nn.Parameter(torch.rand(2)),
    ),
    "iteration": 7,
}
CONTENT["model"]._metadata = collections.OrderedDict({"": {"version": 2}})


def written(content=CONTENT):
    buffer = io.BytesIO()
    write_archive(content, buffer)
    return buffer.getvalue()


def read(data):
    return read_archive(io.BytesIO(data), len(data))


def assert_same(loaded):
    assert loaded["iteration"] == 7 and list(loaded["model"]) == list(CONTENT["model"])
    for name, tensor in CONTENT["model"].items():
        mine = loaded["model"][name]
        assert mine.dtype == tensor.dtype and mine.shape == tensor.shape and mine.stride() == tensor.stride()
        assert torch.equal(mine.float() if name == "small" else mine, tensor.float() if name == "small" else tensor)
    assert loaded["model"]["weight"].data_ptr() + 8 == loaded["model"]["part"].data_ptr()
    assert loaded["model"]._metadata == CONTENT["model"]._metadata


def test_round_trip():
    assert_same(read(written()))


def test_pytorch_reads_what_we_write(tmp_path):
    path = tmp_path / "model.pth"
    path.write_bytes(written())
    assert_same(torch.load(path, weights_only=True))
    assert_same(torch.load(path, weights_only=True, mmap=True))
    assert zipfile.ZipFile(path).testzip() is None


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_we_read_what_pytorch_writes(protocol):
    buffer = io.BytesIO()
    torch.save(CONTENT, buffer, pickle_protocol=protocol)
    assert_same(read(buffer.getvalue()))


def test_pytorch_without_checksums():
    before = torch.serialization.get_crc32_options() if hasattr(torch.serialization, "get_crc32_options") else None
    if before is None:
        pytest.skip("this PyTorch always writes checksums")
    buffer = io.BytesIO()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(CONTENT, buffer)
    finally:
        torch.serialization.set_crc32_options(before)
    assert_same(read(buffer.getvalue()))


def is_refused(data):
    try:
        read(data)
    except Exception:
        return True
    return False


def test_every_byte_counts():
    data, rng = bytearray(written({"model": {"weight": torch.ones(3)}})), random.Random(0)
    for position in range(len(data)):
        bit = 1 << rng.randrange(8)
        data[position] ^= bit
        assert is_refused(data), f"bit {bit} at {position}"
        data[position] ^= bit
    assert not is_refused(data)


def test_every_length_counts():
    data = written({"model": {"weight": torch.ones(3)}})
    assert all(is_refused(data[:length]) for length in range(len(data)))
    assert is_refused(data + b"\0") and is_refused(data + data)


def test_a_seal_of_another_archive_is_refused():
    one, other = written({"model": {"weight": torch.ones(3)}}), written({"model": {"weight": torch.zeros(3)}})
    assert len(one) == len(other)
    assert is_refused(one[:-64] + other[-64:]) and not is_refused(one[:-64] + one[-64:])
    assert is_refused(one[:-64] + one[-64:].upper())


def test_contents_of_other_programs_archives_count():
    buffer = io.BytesIO()
    torch.save({"model": {"weight": torch.ones(1000)}}, buffer)
    data = bytearray(buffer.getvalue())
    content = data.index(torch.ones(1000).numpy().tobytes())
    for position in range(content, content + 4000, 37):
        data[position] ^= 8
        assert is_refused(data)
        data[position] ^= 8
    assert not is_refused(data)
    # A comment that is no checksum may be a damaged one.
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.comment = b"by hand"
    assert is_refused(buffer.getvalue())
