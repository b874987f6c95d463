"""Temporary files that do not outlive a run, whatever ends it."""

import contextlib
import fcntl
import glob
import hashlib
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator

from ..errors import InputError

_LOCK = "in_use"
# Linux has no longer paths for sockets, and this is what is added to ours by name: "/pymp-abcdefgh/listener-abcdefgh".
_LONGEST_SOCKET = 107
_NAME_OF_SOCKET = 32


@contextlib.contextmanager
def temporary_folder(output_dir: str) -> Iterator[None]:
    """Inside, temporary files of this process, and of those that it starts, lie in a folder of their own.

    Loading processes keep their sockets there. The folder is removed at the end; where a process is killed, the next
    one with the same `output_dir` removes it.

    Args:
        output_dir: of the run.

    Raises:
        InputError: the path of the folder for temporary files is too long for sockets in it.
    """
    run = hashlib.sha256(os.path.realpath(output_dir).encode()).hexdigest()[:6]
    shared = tempfile.gettempdir()
    prefix = f"rcnn-{run}-"
    _check_length(os.path.join(shared, f"{prefix}abcdefgh"))
    for left in glob.glob(os.path.join(glob.escape(shared), f"{prefix}*")):
        _remove_unless_in_use(left)
    previous = os.environ.get("TMPDIR"), tempfile.tempdir
    folder = tempfile.mkdtemp(prefix=prefix)
    # The kernel holds the lock until this process and all that it has started have ended, however they do.
    lock = open(os.path.join(folder, _LOCK), "w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.environ["TMPDIR"] = tempfile.tempdir = folder
        yield
    finally:
        variable, tempfile.tempdir = previous
        if variable is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = variable
        lock.close()
        _end_loading_processes()
        shutil.rmtree(folder, ignore_errors=True)


def _end_loading_processes() -> None:
    """Those of a training that was interrupted still run; they would complain that their sockets are gone."""
    loading = [process for process in multiprocessing.active_children() if process.daemon]
    for process in loading:
        process.terminate()
    for process in loading:
        process.join()


def _check_length(folder: str) -> None:
    """A loading process that cannot open its socket would say so and be waited for, for ever."""
    excess = len(os.fsencode(folder)) + _NAME_OF_SOCKET - _LONGEST_SOCKET
    if sys.platform == "linux" and excess > 0:
        shared = os.path.dirname(folder)
        raise InputError(
            f"TMPDIR is {shared}: sockets of loading processes do not fit in a path that long; set it to a folder with "
            f"a path of at most {len(os.fsencode(shared)) - excess} characters"
        )


def _remove_unless_in_use(folder: str) -> None:
    with contextlib.suppress(OSError), open(os.path.join(folder, _LOCK)) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder)
