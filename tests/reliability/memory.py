"""The memory of a long training that is killed and resumed, and what it leaves behind.

python -m tests.reliability.memory --count 2000 --seed 0
"""

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from sparsercnn.data.shapes import prepare_shapes

from .kills import arguments
from .programs import Programs

IMAGES = {"train": 100, "val": 10}
# Parts of the training: the first is the warm-up, the second is compared with the last. Each has as many evaluations,
# checkpoints and passes over the data as the others.
PARTS = 4
SECONDS_BETWEEN_SAMPLES = 0.5
SECONDS_WAITED = 3600


def run(count: int, seed: int, folder: Path) -> dict[str, float]:
    """Train with two loading processes; kill the training early, resume it, and measure the rest.

    Args:
        count: of iterations, at least 200.
        seed: of the moment of the kill.
        folder: for the run.

    Returns:
        The "iterations"; the memory of all processes together, what they share counted once, as the median over the
        second quarter ("mib_early") and over the last one ("mib_late") of the training, and by how much it grew
        ("growth_percent"); the highest sample ("peak_mib"); and how many processes, temporary files and pieces of
        shared memory were "left" after the end.
    """
    prepare_shapes(folder / "shapes", IMAGES, size=40)
    programs = Programs(folder)
    output = folder / "run"
    # Each new shape of tensors makes the heap grow a little: with crops of all sizes, the warm-up would be long.
    options = ["SOLVER.MAX_ITER", count, "SOLVER.CHECKPOINT_PERIOD", count // 20, "TEST.EVAL_PERIOD", count // 8]
    options += ["INPUT.CROP.ENABLED", False]
    start, resume = (
        ["train_net.py", *arguments(folder / "shapes", output, 2, *flags, options=list(map(str, options)))]
        for flags in ((), ("--resume",))
    )
    process = programs.start(start)
    moment = random.Random(seed).randint(count // 20, count // 10)
    _samples(programs, process, output, until=moment)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process = programs.start(resume)
    samples = _samples(programs, process, output, until=count)
    if process.wait():
        raise AssertionError(f"the training ended with status {process.returncode}: {programs.printed()[-2000:]}")
    parts = [[mib for iteration, mib in samples if iteration * PARTS // (count + 1) == part] for part in range(PARTS)]
    early, late = statistics.median(parts[1]), statistics.median(parts[-1])
    return {
        "iterations": count,
        "mib_early": round(early),
        "mib_late": round(late),
        "growth_percent": round(100 * (late / early - 1), 2),
        "peak_mib": round(max(mib for _, mib in samples)),
        "left": len(programs.left_behind()),
    }


def _samples(programs: Programs, process: subprocess.Popen, output: Path, until: int) -> list[tuple[int, float]]:
    """Iteration and memory in MiB again and again, until that iteration is reached or the process has ended."""
    samples = []
    deadline = time.monotonic() + SECONDS_WAITED
    while process.poll() is None and (iteration := _iteration(output)) < until:
        samples.append((iteration, programs.mebibytes()))
        if time.monotonic() > deadline:
            programs.end()
        time.sleep(SECONDS_BETWEEN_SAMPLES)
    return samples


def _iteration(output: Path) -> int:
    """The last one of which metrics are written, every 20."""
    metrics = output / "metrics.json"
    lines = metrics.read_text().splitlines() if metrics.is_file() else []
    return json.loads(lines[-1])["iteration"] if lines else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000, help="of iterations")
    parser.add_argument("--seed", type=int, default=0, help="of the moment of the kill")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        print(json.dumps(run(given.count, given.seed, Path(temporary)), indent=2))
