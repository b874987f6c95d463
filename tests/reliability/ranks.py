"""Experiments on two processes that train together: one is killed, the other ends, and the run continues exactly.

python -m tests.reliability.ranks --count 12 --seed 0
"""

import argparse
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from sparsercnn.data.shapes import prepare_shapes

from .kills import IMAGES, SECONDS_WAITED, arguments, differing
from .programs import Programs

# Seconds within which all processes must have ended.
PROMISED = 60


def run(count: int, seed: int, folder: Path) -> dict[str, float]:
    """Train with two processes again and again, each time another run, and kill one of them with SIGKILL.

    Args:
        count: of kills.
        seed: of the moments and victims.
        folder: for the runs, which are removed where all was well.

    Returns:
        How many "kills" there were: of a process that train_net.py had started ("rank"), of one that somebody else had,
        as SLURM does ("alone"), of train_net.py itself ("starter"), and of one under `torchrun --max-restarts`
        ("restarted"). After how many of them the others "ended" within a minute (or were started again), something
        "said_why", "nothing_left" (no process, temporary file or shared memory), and the run, resumed, ended "equal"
        to the undisturbed one; and the "slowest_end" in seconds.
    """
    prepare_shapes(folder / "shapes", IMAGES, size=40)
    undisturbed = Experiment(folder, "undisturbed", random.Random(seed))
    process = undisturbed.start_together()
    began = undisturbed.wait_for_beginning()
    undisturbed.finish(process)
    duration = undisturbed.final.stat().st_mtime - began
    figures: dict[str, float] = Counter(
        kills=0, rank=0, alone=0, starter=0, restarted=0, ended=0, said_why=0, nothing_left=0, equal=0, slowest_end=0
    )
    moments = random.Random(seed)
    while figures["kills"] < count:
        number = int(figures["kills"])
        experiment = Experiment(folder, f"killed_{number}", moments)
        kind = KINDS[number % len(KINDS)]
        # Without an outcome, the training had ended before its moment came: again, at another moment.
        if outcome := kind(experiment, duration * moments.random()):
            outcome["nothing_left"] = outcome.get("nothing_left", True) and not experiment.programs.left_behind()
            outcome["equal"] = not (differences := differing(undisturbed.output, experiment.output))
            figures["slowest_end"] = max(figures["slowest_end"], round(outcome.pop("slowest_end", 0), 1))
            for name, value in {**outcome, "kills": 1, kind.__name__: 1}.items():
                figures[name] += value
            if not all(outcome.values()):
                print(f"{experiment.folder} ({kind.__name__}): {outcome} {differences}", file=sys.stderr)
                continue
        shutil.rmtree(experiment.folder)
    return dict(figures)


class Experiment:
    """One run of two processes.

    Args:
        folder: of all runs.
        name: of this one.
        moments: chooses who is killed.
    """

    def __init__(self, folder: Path, name: str, moments: random.Random):
        self.folder = folder / name
        self.output = self.folder / "output"
        self.final = self.output / "model_final.pth"
        self.moments = moments
        self.programs = Programs(self.folder)
        self.arguments = arguments(folder / "shapes", self.output, 1)

    def start_together(self, *flags: str) -> subprocess.Popen:
        """train_net.py starts both."""
        return self.programs.start(["train_net.py", "--num-gpus", "2", *flags, *self.arguments])

    def start_each(self) -> list[subprocess.Popen]:
        """Nobody watches over the two."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        ranks = [{**common, "RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
        return [self.programs.start(["train_net.py", *self.arguments], rank) for rank in ranks]

    def start_with_torchrun(self) -> subprocess.Popen:
        command = "-m torch.distributed.run --standalone --nproc-per-node 2 --max-restarts 1 train_net.py".split()
        return self.programs.start([*command, *self.arguments])

    def wait_for_beginning(self) -> float:
        """Wait until the first iteration; returns the time, in seconds since the epoch."""
        log = self.output / "log.txt"
        deadline = time.monotonic() + SECONDS_WAITED
        while time.monotonic() < deadline:
            if log.is_file() and "Starting training from" in log.read_text():
                return time.time()
            time.sleep(0.01)
        self.programs.end()
        raise AssertionError(f"no training has begun: {self.programs.printed()[-2000:]}")

    def kill(self, delay: float, find: Callable[[], list[int]]) -> bool:
        """Kill one of the processes that are found so many seconds after training began; False if it ended before."""
        self.wait_for_beginning()
        time.sleep(delay)
        victims = find()
        if self.final.exists() or not victims:
            self.programs.wait_until_gone(SECONDS_WAITED)
            return False
        os.kill(self.moments.choice(victims), signal.SIGKILL)
        return True

    def outcome(self, words: str) -> dict[str, float]:
        """What became of the other processes; afterwards none runs."""
        seconds = self.programs.wait_until_gone(PROMISED)
        self.programs.end()
        return {"ended": seconds < PROMISED, "said_why": words in self.programs.printed(), "slowest_end": seconds}

    def finish(self, process: subprocess.Popen) -> None:
        """Wait for a training that nobody disturbs."""
        try:
            status = process.wait(SECONDS_WAITED)
        finally:
            self.programs.end()
        if status:
            raise AssertionError(f"a training ended with status {status}: {self.programs.printed()[-2000:]}")


def rank(experiment: Experiment, delay: float) -> dict[str, float]:
    """train_net.py started both, and says which was killed; it removes what that one left."""
    process = experiment.start_together()
    if not experiment.kill(delay, lambda: experiment.programs.children(process.pid, "spawn_main")):
        return {}
    outcome = experiment.outcome("of 2 was killed by SIGKILL")
    outcome["nothing_left"] = not experiment.programs.left_behind()
    experiment.finish(experiment.start_together("--resume"))
    return outcome


def alone(experiment: Experiment, delay: float) -> dict[str, float]:
    """Nobody tells the other one, which notices by itself."""
    processes = experiment.start_each()
    if not experiment.kill(delay, lambda: [process.pid for process in processes]):
        return {}
    outcome = experiment.outcome("lost the connection to another process, which has ended")
    experiment.finish(experiment.start_together("--resume"))
    return outcome


def starter(experiment: Experiment, delay: float) -> dict[str, float]:
    """Those that it started save and stop."""
    process = experiment.start_together()
    if not experiment.kill(delay, lambda: [process.pid]):
        return {}
    outcome = experiment.outcome("Stopping after this iteration, with a checkpoint")
    experiment.finish(experiment.start_together("--resume"))
    return outcome


def restarted(experiment: Experiment, delay: float) -> dict[str, float]:
    """torchrun ends the other one, says why, and starts both again."""
    process = experiment.start_with_torchrun()
    if not experiment.kill(delay, lambda: experiment.programs.children(process.pid, "train_net.py")):
        return {}
    experiment.finish(process)
    return {"ended": True, "said_why": "failed (exitcode: -9)" in experiment.programs.printed()}


KINDS = (rank, alone, restarted, starter)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=12, help="of kills")
    parser.add_argument("--seed", type=int, default=0, help="of moments and victims")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        print(json.dumps(run(given.count, given.seed, Path(temporary)), indent=2))
