#!/usr/bin/env python3
"""Repeat a training step whose losses or gradient were not finite, from the file that it left in OUTPUT_DIR.

    python tools/replay_batch.py output/quickstart/not_finite_0000123.pth
    python tools/replay_batch.py output/quickstart/not_finite_0000123.pth MODEL.DEVICE cpu SOLVER.AMP.ENABLED False

KEY VALUE pairs change the config, to see whether the step is finite without them. Exit status 1 if it is not finite.
"""

import argparse
import math
import sys
from pathlib import Path

from sparsercnn.engine.failed_step import Replay, replay
from sparsercnn.errors import InputError

NAMES_SHOWN = 10


def report(step: Replay) -> str:
    """The step as text: its losses then and now, and where the gradient is not finite."""
    lines = [f"iteration {step.iteration}, learning rate {step.learning_rate:.5g}"]
    lines += [f"image {name}" for name in step.images]
    lines += [f"{'loss':24}{'then':>12}{'now':>12}"]
    for name, then in step.recorded.items():
        lines.append(f"{name:24}{then:12.5g}{step.repeated.get(name, math.nan):12.5g}")
    lines.append(f"norm of the gradient now: {step.gradient_norm:.5g}")
    if step.parameters:
        shown = step.parameters[:NAMES_SHOWN]
        more = f" and {len(step.parameters) - len(shown)} more" if len(step.parameters) > len(shown) else ""
        lines.append(f"not finite is the gradient of {', '.join(shown)}{more}")
    lines.append("the step is finite" if step.is_finite else "the step is not finite")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="not_finite_ITERATION.pth")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE …", help="changes of the config")
    args = parser.parse_args(argv)
    try:
        step = replay(args.file, args.opts)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(report(step))
    return 0 if step.is_finite else 1


if __name__ == "__main__":
    sys.exit(main())
