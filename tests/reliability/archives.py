"""Hostile files of tensors, loaded one after the other: `run` counts what each of them achieves.

python -m tests.reliability.archives FOLDER [COUNT]
"""

import json
import os
import random
import resource
import signal
import sys
import traceback
from collections import Counter
from pathlib import Path

import torch
from detectron2.checkpoint import DetectionCheckpointer  # noqa: F401  loaded before memory is measured

from sparsercnn.engine import SparseRCNNCheckpointer
from sparsercnn.errors import InputError
from tests.processes import forkserver

from .hostile_archives import FILES, LEGACY_START, LEGACY_SYSTEM, write_pickle
from .hostile_pickles import PICKLES

MEMORY_LIMIT = 1 << 30
# Where a loader that is fooled stops before the machine suffers: address space, and seconds.
ADDRESS_SPACE = 8 << 30
SECONDS = 60
# What Python announces when something is run or written that no loading of a file has to do with.
DEEDS = "os.system os.exec os.posix_spawn os.mkdir subprocess.Popen socket.connect pickle.find_class".split()


def run(count: int, seed: int, folder: Path) -> dict[str, int]:
    """Load hostile files, each in a process of its own.

    Args:
        count: files; every construction comes once before any comes again in another container.
        seed: of their order and containers.
        folder: for the files, which stay there.

    Returns:
        how many "files" there were, and how many were "refused_by_name" in one line, "loaded", ended in "traces" (or
        in a crash or a time-out), "executed" something, and took "over_1_gib" more memory than was in use.
    """
    paths = [str(path) for path in write_files(count, seed, folder)]
    outcomes = folder / "outcomes"
    process = forkserver().Process(target=_load_each, args=(paths, outcomes))
    process.start()
    process.join()
    counts: Counter[str] = Counter(files=count, refused_by_name=0, loaded=0, traces=0, executed=0, over_1_gib=0)
    for path, line in zip(paths, outcomes.read_text().splitlines(), strict=True):
        outcome = json.loads(line)
        executed = outcome["executed"] or Path(path).with_suffix(".evidence").exists()
        counts.update({outcome["result"]: 1, "executed": executed, "over_1_gib": outcome["memory"] > MEMORY_LIMIT})
        if outcome["result"] != "refused_by_name" or executed or outcome["memory"] > MEMORY_LIMIT:
            print(path, outcome, file=sys.stderr)
    return dict(counts)


def write_files(count: int, seed: int, folder: Path) -> list[Path]:
    """Write `count` hostile files."""
    rng = random.Random(seed)
    constructions = [*PICKLES, *FILES]
    paths = []
    for i in range(count):
        if i % len(constructions) == 0:
            rng.shuffle(constructions)
        name = constructions[i % len(constructions)]
        if name in FILES:
            ending, write = FILES[name]
            path = folder / f"{i:04d}_{name}.{ending}"
            write(path)
        else:
            container = rng.choice([_as_archive, _as_old_file, _as_pickle])
            ending = "pkl" if container is _as_pickle else "pth"
            path = folder / f"{i:04d}_{name}.{ending}"
            container(path, PICKLES[name](path.with_suffix(".evidence")))
        paths.append(path)
    return paths


def _as_pickle(path: Path, pickled: bytes) -> None:
    path.write_bytes(pickled)


def _as_archive(path: Path, pickled: bytes) -> None:
    write_pickle(path, pickled)


def _as_old_file(path: Path, pickled: bytes) -> None:
    path.write_bytes(LEGACY_START + LEGACY_SYSTEM + pickled)


def _load_each(paths: list[str], outcomes: Path) -> None:
    """Load each file in a fork of this process and write its outcome as a line of JSON."""
    lines = []
    for path in paths:
        reader, writer = os.pipe()
        process = os.fork()
        if process == 0:
            os.write(writer, json.dumps(_load(path)).encode())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            outcome = pipe.read()
        os.waitpid(process, 0)
        lines.append(outcome or json.dumps({"result": "traces", "executed": False, "memory": 0}))
    outcomes.write_text("\n".join(lines))


def _load(path: str) -> dict:
    model = torch.nn.ModuleDict({"weight": torch.nn.Linear(2, 2)})
    deeds = []
    sys.addaudithook(lambda event, arguments: deeds.append(event) if event in DEEDS else None)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    signal.alarm(SECONDS)
    before = _memory_in_use()
    try:
        SparseRCNNCheckpointer(model).load(path)
        result = "loaded"
    except InputError as error:
        named = path in str(error) and "\n" not in str(error)
        result = "refused_by_name" if named else "traces"
    except BaseException:
        traceback.print_exc()
        result = "traces"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"result": result, "executed": bool(deeds), "memory": peak - before}


def _memory_in_use() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    print(run(int(sys.argv[2]) if sys.argv[2:] else len(PICKLES) + len(FILES), 0, target))
