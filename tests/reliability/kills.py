"""Experiments on interrupted training: kill it, continue it, and compare with a run that was left alone, bit for bit.

python -m tests.reliability.kills --count 50 --seed 0
"""

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from sparsercnn.data.shapes import SPLITS, annotation_file, prepare_shapes
from sparsercnn.engine.checkpoints.metadata import METADATA
from sparsercnn.engine.events import MEASURED
from sparsercnn.files import PARTIAL
from tests.processes import forkserver

ROOT = Path(__file__).parents[2]
# Everything that has state or draws random numbers: batch norm, dropout, crops, momenta, accumulated batches, averaged
# weights. The periods of checkpoints, evaluations and metrics (20) are not multiples of one another.
OPTIONS = """
MODEL.DEVICE cpu MODEL.RESNETS.OUT_FEATURES ['res2','res3'] MODEL.NECK.IN_FEATURES ['res2','res3']
MODEL.ROI_HEADS.IN_FEATURES ['p2','p3'] MODEL.NECK.OUT_CHANNELS 16
MODEL.SparseRCNN.HIDDEN_DIM 16 MODEL.SparseRCNN.NUM_HEADS 2 MODEL.SparseRCNN.NUM_PROPOSALS 8
MODEL.SparseRCNN.DIM_FEEDFORWARD 16 MODEL.SparseRCNN.DIM_DYNAMIC 8 MODEL.SparseRCNN.DROPOUT 0.1
INPUT.MIN_SIZE_TRAIN (32,40) INPUT.CROP.ENABLED True INPUT.CROP.TYPE absolute_range INPUT.CROP.SIZE [16,40]
INPUT.MIN_SIZE_TEST 32 DATASETS.TRAIN ('kill_train',) DATASETS.TEST ('kill_val',) SEED 1
SOLVER.IMS_PER_BATCH 2 SOLVER.ACCUMULATE 2 SOLVER.MAX_ITER 26 SOLVER.WARMUP_ITERS 4 SOLVER.AMP.ENABLED False
SOLVER.CHECKPOINT_PERIOD 5 TEST.EVAL_PERIOD 8 SOLVER.EMA_DECAY 0.9 TEST.PRECISE_BN.ENABLED True
TEST.PRECISE_BN.NUM_ITER 2
""".split()
IMAGES = {"train": 10, "val": 4}
WORKERS = ((0, 0), (2, 2), (0, 2), (2, 0))
"""Loading processes before the kill and after it."""
# Of 50 kills, 10 while a checkpoint is written and 5 during an evaluation.
KINDS = ("any", "checkpoint", "any", "any", "evaluation", "any", "checkpoint", "any", "any", "any")
SECONDS_WAITED = 300


def run(count: int, seed: int, folder: Path) -> dict[str, int]:
    """Kill a small training with SIGKILL again and again, each time another run, and continue it to its end.

    Args:
        count: of kills.
        seed: of the moments.
        folder: for the runs, which are removed when they are equal to the undisturbed one.

    Returns:
        How many kills there were ("kills"), how many of them "during_checkpoint" and "during_evaluation", with how many
        loading processes ("workers_0", "workers_2", "workers_changed"), and after how many of them the run ended
        "equal" to the undisturbed one. That is compared: every file of weights, with the state of optimizer, schedule
        and best score in it; metrics.json but for measured times; and the results of the last evaluation.
    """
    data = folder / "shapes"
    prepare_shapes(data, IMAGES, size=40)
    # The first process waits for the imports of the one that it is forked from.
    warm_up = forkserver().Process(target=int)
    warm_up.start()
    warm_up.join()
    began = time.monotonic()
    finish(start(data, folder / "undisturbed", workers=0), folder / "undisturbed")
    duration = time.monotonic() - began
    moments = random.Random(seed)
    figures = Counter(kills=0, during_checkpoint=0, during_evaluation=0, equal=0)
    while figures["kills"] < count:
        number = figures["kills"]
        before, after = WORKERS[number % len(WORKERS)]
        output = folder / f"killed_{number}"
        moment = _moment(KINDS[number % len(KINDS)], moments, duration, output)
        process = start(data, output, before)
        # One that has ended before its moment came was not killed: again, at another moment.
        if _kill(process, moment):
            figures["kills"] += 1
            figures["during_checkpoint"] += any(output.glob(f"*{PARTIAL}"))
            figures["during_evaluation"] += _is_evaluating(output)
            figures[f"workers_{before}" if before == after else "workers_changed"] += 1
            finish(start(data, output, after, "--resume"), output)
            if differences := differing(folder / "undisturbed", output):
                print(f"{output} differs: {'; '.join(differences)}", file=sys.stderr)
                continue
            figures["equal"] += 1
        _remove(output)
    return dict(figures)


def _moment(kind: str, moments: random.Random, duration: float, output: Path) -> Callable[[], bool]:
    """What tells whether the moment to kill has come."""
    nth = moments.randint(1, 4)
    delay = moments.random()
    end = time.monotonic() + duration * delay
    if kind == "checkpoint":
        return _Appearance(output, nth)
    if kind == "evaluation":
        nth = moments.randint(1, 3)
        return lambda: _log(output).count("Start inference on") >= nth
    return lambda: time.monotonic() >= end


class _Appearance:
    """Says whether a file that is not yet whole is there for the nth time."""

    def __init__(self, output: Path, nth: int):
        self.output = output
        self.nth = nth
        self.seen = 0
        self.is_there = False

    def __call__(self) -> bool:
        was_there = self.is_there
        self.is_there = any(self.output.glob(f"*.pth{PARTIAL}"))
        self.seen += self.is_there and not was_there
        return self.seen >= self.nth and self.is_there


def _log(output: Path) -> str:
    log = output / "log.txt"
    return log.read_text() if log.is_file() else ""


def _is_evaluating(output: Path) -> bool:
    log = _log(output)
    return log.count("Start inference on") > log.count("in csv format")


def arguments(data: Path, output: Path, workers: int, *flags: str, options: Sequence[str] = ()) -> list[str]:
    """A command line of train_net.py.

    Args:
        data: folder of the generated shapes.
        output: folder of the run.
        workers: loading processes.
        flags: of train_net.py.
        options: config keys and values in turn, after those above.
    """
    splits = [[f"kill_{split}", str(annotation_file(data, split)), str(data / split)] for split in SPLITS]
    ours = ["DATASETS.COCO_JSON", repr(splits), "DATALOADER.NUM_WORKERS", str(workers), "OUTPUT_DIR", str(output)]
    return ["--config-file", str(ROOT / "configs" / "quickstart.yaml"), *flags, *OPTIONS, *ours, *options]


def start(
    data: Path, output: Path, workers: int, *flags: str, options: Sequence[str] = (), environment: dict | None = None
) -> BaseProcess:
    """A process of its own that runs train_net.py; what it prints goes to OUTPUT.txt beside its folder.

    Args:
        data, output, workers, flags, options: see `arguments`.
        environment: variables to add.
    """
    argv = arguments(data, output, workers, *flags, options=options)
    process = forkserver().Process(target=_train, args=(argv, f"{output}.txt", environment or {}))
    process.start()
    return process


def _train(argv: list[str], printed: str, environment: dict) -> None:
    """Run train_net.py in this process; what it prints goes to a file."""
    descriptor = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(environment)
    torch.set_num_threads(1)
    # Loading processes start as they do in a training that was started from a shell.
    multiprocessing.set_start_method(None, force=True)
    import train_net

    sys.exit(train_net.main(argv))


def _kill(process: BaseProcess, moment: Callable[[], bool]) -> bool:
    """Kill the process at the moment; False if it ended before."""
    while process.is_alive():
        if moment():
            process.kill()
            break
        time.sleep(0.0005)
    process.join()
    return process.exitcode == -signal.SIGKILL


def finish(process: BaseProcess, output: Path) -> None:
    process.join(SECONDS_WAITED)
    if process.exitcode != 0:
        process.kill()
        printed = output.with_name(f"{output.name}.txt").read_text()[-2000:]
        raise AssertionError(f"a training that was left alone ended with status {process.exitcode}: {printed}")


def _remove(output: Path) -> None:
    for file in sorted(output.rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    if output.is_dir():
        output.rmdir()
    output.with_name(f"{output.name}.txt").unlink()


def differing(expected: Path, actual: Path) -> list[str]:
    """What of two finished runs in these folders is not bit for bit the same.

    The second may have more checkpoints than the first: a signal that stops a training saves one.
    """
    names = [file.name for file in expected.glob("*.pth")]
    differences = [name for name in sorted(names) if not same(checkpoint(expected / name), checkpoint(actual / name))]
    if metrics(expected) != metrics(actual):
        differences.append("metrics.json")
    for name in ("metrics.json", "coco_instances_results.json"):
        path = Path("inference") / "kill_val" / name
        if (expected / path).read_text() != (actual / path).read_text():
            differences.append(str(path))
    return differences


def checkpoint(path: Path) -> dict | None:
    """What a file of weights holds, but for its metadata, which name the folder and the number of loading processes."""
    if not path.is_file():
        return None
    content = torch.load(path, weights_only=True)
    content.pop(METADATA)
    return content


def same(a: object, b: object) -> bool:
    """Whether two trees of tensors and plain values are equal, NaN to NaN."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.numpy().tobytes() == b.numpy().tobytes()
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return isinstance(b, list | tuple) and len(a) == len(b) and all(map(same, a, b))
    return repr(a) == repr(b)


def metrics(folder: Path) -> list[str]:
    """The lines without what was measured, NaN equal to NaN."""
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return [repr({key: value for key, value in line.items() if key not in MEASURED}) for line in lines]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=50, help="of kills")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        print(json.dumps(run(arguments.count, arguments.seed, Path(temporary)), indent=2))
