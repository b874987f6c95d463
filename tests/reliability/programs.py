"""Programs with all that belongs to them: processes, memory, and what they leave behind. Linux only."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from .kills import ROOT

SHARED_MEMORY = Path("/dev/shm")
# Seconds for what ends by itself: loading processes look every few seconds whether they are still needed.
GRACE = 15.0


class Programs:
    """Programs that have a folder for temporary files to themselves, by which they and all whom they start are known.

    Args:
        folder: for that folder, and for what they print.
    """

    def __init__(self, folder: Path):
        self.temporary = folder / "tmp"
        self.temporary.mkdir(parents=True, exist_ok=True)
        self.output = folder / "printed.txt"
        self.shared_memory = _names(SHARED_MEMORY)

    def start(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> subprocess.Popen:
        """Start a program with Python, in the root of the repository.

        Args:
            command: Python's arguments: a script or `-m` and a module, and their arguments.
            environment: variables to add.
        """
        with self.output.open("a") as output:
            return subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {}), "TMPDIR": str(self.temporary)},
            )

    def printed(self) -> str:
        """All that they have printed."""
        return self.output.read_text() if self.output.is_file() else ""

    def processes(self) -> list[int]:
        """Numbers of those that run, ascending, whoever started them."""
        mark = f"TMPDIR={self.temporary}".encode()
        running = []
        for entry in Path("/proc").iterdir():
            # Processes end at any time, and those of others are closed to us.
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and any(
                    variable.startswith(mark) for variable in (entry / "environ").read_bytes().split(b"\0")
                ):
                    running.append(int(entry.name))
        return sorted(running)

    def children(self, parent: int, word: str) -> list[int]:
        """Numbers of the processes that one has started with a word in their command line, ascending."""
        found = []
        for number in self.processes():
            with contextlib.suppress(OSError):
                if int(_status(number)[1]) == parent and word in Path(f"/proc/{number}/cmdline").read_text():
                    found.append(number)
        return found

    def mebibytes(self) -> float:
        """Memory of all processes together, what they share counted once."""
        total = 0
        for number in self.processes():
            with contextlib.suppress(OSError):
                lines = Path(f"/proc/{number}/smaps_rollup").read_text().splitlines()
                total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        return total / 1024

    def processor_seconds(self) -> float:
        """Time that processors have worked for those that run, and for those that these have started."""
        ticks = 0
        for number in self.processes():
            with contextlib.suppress(OSError):
                ticks += sum(map(int, _status(number)[11:15]))
        return ticks / os.sysconf("SC_CLK_TCK")

    def wait_until_gone(self, seconds: float) -> float:
        """Wait until no process runs, at most so long; returns the seconds it took, infinity if some still run."""
        began = time.monotonic()
        while time.monotonic() < began + seconds:
            if not self.processes():
                return time.monotonic() - began
            time.sleep(0.05)
        return float("inf")

    def end(self) -> None:
        """Kill those that still run."""
        for number in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, 9)

    def left_behind(self) -> list[str]:
        """Processes, temporary files and shared memory that are still there after a while."""
        deadline = time.monotonic() + GRACE
        while (left := self._left()) and time.monotonic() < deadline:
            time.sleep(0.5)
        return left

    def _left(self) -> list[str]:
        processes = [f"process {number}" for number in self.processes()]
        # Shared memory of other programs comes and goes meanwhile.
        new = _names(SHARED_MEMORY) - self.shared_memory
        # torchrun leaves empty folders for logs.
        files = sorted(name for name in _names(self.temporary) if not name.startswith("torchelastic_"))
        return processes + files + [str(SHARED_MEMORY / name) for name in sorted(new)]


def _status(number: int) -> list[str]:
    """What the system says of a process: its state, its parent, …"""
    # The fields follow the name in parentheses, which may hold anything.
    return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()


def _names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
