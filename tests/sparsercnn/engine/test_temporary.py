import fcntl
import os
import tempfile

import pytest

from sparsercnn.engine.temporary import temporary_folder


@pytest.fixture(autouse=True)
def shared(tmp_path, monkeypatch):
    """The folder that all programs keep temporary files in."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def test_nothing_is_left(shared):
    with pytest.raises(KeyError), temporary_folder("output"):
        folder = tempfile.gettempdir()
        assert os.path.dirname(folder) == str(shared) and os.environ["TMPDIR"] == folder
        tempfile.mkdtemp()
        raise KeyError
    assert tempfile.gettempdir() == os.environ["TMPDIR"] == str(shared) and os.listdir(shared) == []


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
