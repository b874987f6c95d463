import contextlib
import errno
import os
import resource
import signal
import subprocess

import pytest
import torch

from sparsercnn.files import CannotWriteError, write_whole


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "file.json"
    path.write_bytes(b"before")

    def write(file):
        file.write(b"after")
        file.flush()
        assert path.read_bytes() == b"before"

    write_whole(path, write)
    assert path.read_bytes() == b"after" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_a_write_that_fails_leaves_what_was_there(tmp_path, error):
    path = tmp_path / "file"
    path.write_bytes(b"before")

    def write(file):
        file.write(b"half")
        raise error

    with pytest.raises(error):
        write_whole(path, write)
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]


def test_errors_of_the_file_system_are_one_line(tmp_path):
    def write(file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(CannotWriteError, match=f"^cannot write {tmp_path}/file: No space left on device$"):
        write_whole(tmp_path / "file", write)
    with pytest.raises(CannotWriteError, match="No such file or directory"):
        write_whole(tmp_path / "nowhere" / "file", lambda file: file.write(b"x"))


@contextlib.contextmanager
def largest_file(size):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_torch_save_that_the_system_stops(tmp_path):
    """`torch.save` makes another error of it."""
    path = tmp_path / "file.pth"
    path.write_bytes(b"before")
    with largest_file(10_000), pytest.raises(CannotWriteError, match="File too large"):
        write_whole(path, lambda file: torch.save(torch.zeros(100_000), file))
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("no right to mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(small_disk):
    path = small_disk / "file.pth"
    write_whole(path, lambda file: torch.save(torch.zeros(10_000), file))
    before = path.read_bytes()
    with pytest.raises(CannotWriteError, match="No space left on device"):
        write_whole(path, lambda file: torch.save(torch.ones(20_000), file))
    assert path.read_bytes() == before and list(small_disk.iterdir()) == [path]
