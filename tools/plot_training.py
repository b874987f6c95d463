#!/usr/bin/env python3
"""Draw the curves of a training run: python tools/plot_training.py output/quickstart"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

from sparsercnn.engine.progress import final_losses
from sparsercnn.errors import InputError

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def plot_training(output_dir: Path) -> Path:
    """Draw `metrics.json` of `output_dir` into its `training_curves.png` and return the picture's path.

    Raises:
        InputError: there are no metrics.
    """
    rows = read_metrics(output_dir / "metrics.json")
    figure, (loss_axes, last_axes, rate_axes, ap_axes) = plt.subplots(1, 4, figsize=(16, 3.6), layout="constrained")
    _curve(loss_axes, rows, "total_loss")
    loss_axes.set(title="Total loss", yscale="log")
    for key in final_losses(sorted({key for row in rows for key in row} - {"total_loss"})):
        _curve(last_axes, rows, key)
    last_axes.set(title="Losses (of the last stage)", yscale="log")
    last_axes.legend()
    _curve(rate_axes, rows, "lr")
    rate_axes.set(title="Learning rate")
    for key in sorted({key for row in rows for key in row if key.endswith(("bbox/AP", "bbox/AP50"))}):
        _curve(ap_axes, rows, key, marker="o")
    ap_axes.set(title="Evaluation", ylim=(0, 100))
    if ap_axes.lines:
        ap_axes.legend()
    for axes in figure.axes:
        axes.set_xlabel("iteration")
        axes.grid(alpha=0.3)
    picture = output_dir / "training_curves.png"
    figure.savefig(picture, dpi=120)
    plt.close(figure)
    return picture


def read_metrics(path: Path) -> list[dict]:
    """One dict for each line of a `metrics.json`."""
    if not path.is_file():
        raise InputError(f"there is no {path}; give the OUTPUT_DIR of a training run")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    if not rows:
        raise InputError(f"{path} is empty: the run has not logged anything yet")
    return rows


def _curve(axes: plt.Axes, rows: list[dict], key: str, **style: Any) -> None:
    points = [(row["iteration"], row[key]) for row in rows if key in row]
    if points:
        axes.plot(*zip(*points, strict=True), label=key, **style)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output_dir", type=Path, help="OUTPUT_DIR of a training run")
    try:
        print(plot_training(parser.parse_args(argv).output_dir))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
