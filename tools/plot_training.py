#!/usr/bin/env python3
"""Draw the curves of training runs.

    python tools/plot_training.py output/quickstart
    python tools/plot_training.py output/quickstart output/lite0.bccd --output both.png

Several runs are drawn together, each in its color, with its total loss, learning rate and AP.
"""

import argparse
import json
import sys
from collections.abc import Sequence
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
    for key in _scores(rows):
        _curve(ap_axes, rows, key, marker="o")
    ap_axes.set(title="Evaluation", ylim=(0, 100))
    return _save(figure, output_dir / "training_curves.png")


def plot_together(output_dirs: Sequence[Path], picture: Path) -> Path:
    """Draw several runs into one picture and return its path.

    Raises:
        InputError: a run has no metrics.
    """
    figure, (loss_axes, rate_axes, ap_axes, ap50_axes) = plt.subplots(1, 4, figsize=(18, 4), layout="constrained")
    loss_axes.set(title="Total loss", yscale="log")
    rate_axes.set(title="Learning rate")
    for output_dir in output_dirs:
        rows = read_metrics(output_dir / "metrics.json")
        _curve(loss_axes, rows, "total_loss", name=str(output_dir))
        _curve(rate_axes, rows, "lr", name=str(output_dir))
        for axes, ending in ((ap_axes, "bbox/AP"), (ap50_axes, "bbox/AP50")):
            for key in _scores(rows):
                if key.endswith(ending):
                    data = key.removesuffix(ending).strip("/")
                    _curve(axes, rows, key, name=f"{output_dir} {data}".strip(), marker="o")
            axes.set(title=ending.removeprefix("bbox/"), ylim=(0, 100))
    loss_axes.legend(fontsize=8)
    return _save(figure, picture)


def read_metrics(path: Path) -> list[dict]:
    """One dict for each line of a `metrics.json`."""
    if not path.is_file():
        raise InputError(f"there is no {path}; give the OUTPUT_DIR of a training run")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    if not rows:
        raise InputError(f"{path} is empty: the run has not logged anything yet")
    return rows


def _scores(rows: list[dict]) -> list[str]:
    return sorted({key for row in rows for key in row if key.endswith(("bbox/AP", "bbox/AP50"))})


def _curve(axes: plt.Axes, rows: list[dict], key: str, name: str = "", **style: Any) -> None:
    points = [(row["iteration"], row[key]) for row in rows if key in row]
    if points:
        axes.plot(*zip(*points, strict=True), label=name or key, **style)


def _save(figure: plt.Figure, picture: Path) -> Path:
    for axes in figure.axes:
        axes.set_xlabel("iteration")
        axes.grid(alpha=0.3)
    if figure.axes[-1].lines:
        figure.axes[-1].legend(fontsize=8)
    figure.savefig(picture, dpi=120)
    plt.close(figure)
    return picture


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output_dirs", nargs="+", type=Path, metavar="OUTPUT_DIR", help="folders of training runs")
    parser.add_argument("--output", type=Path, default=Path("runs.png"), help="of several runs (default: runs.png)")
    args = parser.parse_args(argv)
    try:
        alone = len(args.output_dirs) == 1
        print(plot_training(args.output_dirs[0]) if alone else plot_together(args.output_dirs, args.output))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
