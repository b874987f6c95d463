#!/usr/bin/env python3
"""Show with figures that training survives what can happen to it: kills, damaged files, hostile files, lost processes.

    python tools/soak.py
    python tools/soak.py kills memory

Everything takes half an hour or more on two cores that have nothing else to do (times count in one promise), 5 GiB of
memory and 5 GB under TMPDIR. A part that is done is not done again by a later call with the same --output. figures.md
there is the table of docs/reliability.md. Exit status 1 if a promise is not kept.
"""

import argparse
import json
import multiprocessing
import os
import platform
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from sparsercnn.files import write_json, write_whole

# As a program, this file is found without the package that it belongs to.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness import cpu_model
from tests.reliability import annotations, archives, checkpoints, images, kills, memory, ranks, scale

Figures = Mapping[str, float]
SEED = 0


@dataclass(frozen=True)
class Part:
    """One row of the table.

    Args:
        run: does so many things, with a seed, in a folder, and returns how they ended.
        count: of things.
        promise: in a sentence.
        is_kept: whether the figures say so.
    """

    run: Callable[[int, int, Path], Figures]
    count: int
    promise: str
    is_kept: Callable[[Figures], bool]


PARTS = {
    "kills": Part(
        kills.run,
        50,
        "Killed at random moments, at least 10 times in a checkpoint and 5 in an evaluation, and resumed, with 0 and 2 "
        "loading processes and a change between them, training ends bit for bit as if left alone",
        lambda x: x["equal"] == x["kills"] and x["during_checkpoint"] >= 10 and x["during_evaluation"] >= 5,
    ),
    "checkpoints": Part(
        checkpoints.run,
        200,
        "A damaged checkpoint is never loaded as good and ends in no trace; the whole one before it is found",
        lambda x: x["fallback_found"] == x["files"] and not x["loaded_as_good"] and not x["traces"],
    ),
    "archives": Part(
        archives.run,
        30,
        "A hostile pickle or archive executes nothing, takes less than 1 GiB and is refused by name",
        lambda x: x["refused_by_name"] == x["files"] and not x["executed"] and not x["over_1_gib"],
    ),
    "annotations": Part(
        annotations.run,
        10_000,
        "A damaged annotation file loads right, or is refused in a line that names file and entry",
        lambda x: x["loaded"] + x["refused"] == sum(x.values()),
    ),
    "images": Part(
        images.run,
        2000,
        "A damaged image is read right, or refused in a line that names it",
        lambda x: not x["traces"] and not x["silent_wrong"],
    ),
    "ranks": Part(
        ranks.run,
        12,
        "One of two processes killed: the other ends within 60 s and says why, nothing is left, and a restart, by "
        "torchrun too, ends bit for bit as if left alone",
        lambda x: all(x[name] == x["kills"] for name in ("ended", "said_why", "nothing_left", "equal")),
    ),
    "memory": Part(
        memory.run,
        2000,
        "Memory grows by less than 2 % after the warm-up; nothing is left after a kill and a resume",
        lambda x: x["growth_percent"] < 2 and x["left"] == 0,
    ),
    "scale": Part(
        scale.run,
        2_000_000,
        "2 million images with 30 million boxes and 4 loading processes: the first iteration ends within 3 minutes, in "
        "less than 12 GiB of all processes",
        lambda x: (
            max(x["first_start_seconds"], x["second_start_seconds"]) < 180
            and max(x["first_start_gib"], x["second_start_gib"]) < 12
        ),
    ),
}


def perform(name: str, output: Path) -> bool:
    """Do one part and save its result, unless that is done already; returns whether its promise is kept."""
    part, result_file = PARTS[name], output / f"{name}.json"
    if result_file.exists():
        result = json.loads(result_file.read_text())
        if result["count"] == part.count and part.is_kept(result["figures"]):
            print(f"{name}: done already", flush=True)
            return True
    print(f"{name}: {part.promise} ({part.count:,}) ...", flush=True)
    # Where sockets fit in, whatever the path of the output folder.
    folder = tempfile.mkdtemp(prefix="soak-")
    began = time.monotonic()
    try:
        # In a process of its own, of which nothing is left in those after it.
        with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
            figures = pool.submit(part.run, part.count, SEED, Path(folder)).result()
    except Exception:  # whatever one part fails of, the others are still to be done
        traceback.print_exc()
        print(f"{name}: failed; see {folder}", flush=True)
        return False
    minutes = (time.monotonic() - began) / 60
    is_kept = part.is_kept(figures)
    print(f"{name}: {in_words(figures)}; {'kept' if is_kept else f'NOT KEPT, see {folder}'}", flush=True)
    write_json(result_file, {"count": part.count, "figures": figures, "minutes": round(minutes, 1), "on": machine()})
    if is_kept:
        shutil.rmtree(folder)
    return is_kept


def in_words(figures: Figures) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in figures.items())


def machine() -> str:
    return f"{os.cpu_count()} cores of {cpu_model()}, Python {platform.python_version()}, torch {torch.__version__}"


def table(output: Path) -> str:
    """What is known of all parts, as Markdown."""
    lines = ["| part | promise | kept | figures | minutes |", "| --- | --- | --- | --- | ---: |"]
    machines: dict[str, None] = {}
    for name, part in PARTS.items():
        file = output / f"{name}.json"
        if file.exists():
            result = json.loads(file.read_text())
            kept = "yes" if part.is_kept(result["figures"]) else "**no**"
            words = in_words(result["figures"])
            lines.append(f"| `{name}` | {part.promise} | {kept} | {words} | {result['minutes']} |")
            machines[result["on"]] = None
    return "\n".join([*lines, "", f"Measured on: {'; '.join(machines)}.", ""])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART", help=f"{', '.join(PARTS)} (all)")
    parser.add_argument("--output", type=Path, default=Path("output/soak"), help="folder for results")
    args = parser.parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    are_kept = []
    for name in args.parts or PARTS:
        are_kept.append(perform(name, args.output))
        write_whole(args.output / "figures.md", lambda file: file.write(table(args.output).encode()))
    print(f"the table is {args.output / 'figures.md'}")
    return 0 if all(are_kept) else 1


if __name__ == "__main__":
    sys.exit(main())
