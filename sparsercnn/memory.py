"""The memory of this process."""

import re
import resource
from pathlib import Path


def resident_memory(kind: str) -> float:
    """MiB that this process holds: "RSS" now, or "HWM" at most until now, which is all that systems but Linux tell."""
    status = Path("/proc/self/status")
    if status.exists():  # what `resource` gives on Linux is the peak of the process that started this one, if higher
        found = re.search(rf"Vm{kind}:\s+(\d+) kB", status.read_text())
        assert found, f"Linux has no Vm{kind}"
        return int(found[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS counts bytes
