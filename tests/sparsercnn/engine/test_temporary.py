import fcntl
import multiprocessing
import os
import socket
import sys
import tempfile
import time

import pytest

from sparsercnn.engine.temporary import temporary_folder
from sparsercnn.errors import InputError


@pytest.fixture(autouse=True)
def shared(monkeypatch):
    """The folder that all programs keep temporary files in."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        monkeypatch.setenv("TMPDIR", folder)
        yield folder


def test_nothing_is_left(shared):
    with pytest.raises(KeyError), temporary_folder("output"):
        folder = tempfile.gettempdir()
        assert os.path.dirname(folder) == shared and os.environ["TMPDIR"] == folder
        tempfile.mkdtemp()
        raise KeyError
    assert tempfile.gettempdir() == os.environ["TMPDIR"] == shared and os.listdir(shared) == []


def test_who_loads_images_ends_before_the_folder_goes():
    with pytest.raises(KeyboardInterrupt), temporary_folder("output"):
        process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,), daemon=True)
        process.start()
        raise KeyboardInterrupt
    assert process.exitcode is not None


def test_what_killed_processes_of_the_same_run_left_goes(shared):
    with temporary_folder("output"):
        dead = tempfile.gettempdir()
    for name in (dead, dead + "x"):
        os.makedirs(os.path.join(name, "sockets"))
        open(os.path.join(name, "in_use"), "w").close()
    with temporary_folder("elsewhere"):
        assert len(os.listdir(shared)) == 3
    with open(os.path.join(dead, "in_use")) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as a process that is alive
        with temporary_folder("output"):
            assert os.path.exists(dead) and not os.path.exists(dead + "x")
    with temporary_folder(os.path.abspath("output")):
        assert not os.path.exists(dead)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other limits")
def test_a_folder_that_sockets_do_not_fit_in_is_refused(shared, monkeypatch):
    folder = shared + "/" + "x" * (53 - len(shared))
    for name in (folder, folder + "x"):
        os.mkdir(name)
    monkeypatch.setattr(tempfile, "tempdir", folder)
    with temporary_folder("output"), socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.join(tempfile.mkdtemp(prefix="pymp-"), "listener-abcdefgh"))
    monkeypatch.setattr(tempfile, "tempdir", folder + "x")
    with pytest.raises(InputError, match="TMPDIR is .*x: sockets .* at most 54 characters"), temporary_folder("output"):
        pass
