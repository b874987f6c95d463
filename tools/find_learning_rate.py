#!/usr/bin/env python3
"""Find a learning rate: train a few iterations with ever larger ones and see where the loss stops to fall.

    python tools/find_learning_rate.py --config-file configs/lite0.bccd.yaml

Smith, Cyclical Learning Rates for Training Neural Networks, 2017, section 3.3. What is proposed for SOLVER.BASE_LR, the
peak of a schedule with warm-up, is a third of the rate at which the smoothed loss was lowest. It is a start and no
promise. Nothing of the training is kept.
"""

import argparse
import math
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import matplotlib
from detectron2.config import CfgNode

from sparsercnn import load_config
from sparsercnn.engine import Trainer, check_config
from sparsercnn.errors import InputError

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# Of the loss in its running mean, which forgets a value by this factor an iteration.
SMOOTHING = 0.9
# Training ends when the smoothed loss is so many times the lowest one.
DIVERGED = 2.0
PROPOSED = 1 / 3


def sweep(cfg: CfgNode, lowest: float, highest: float, iterations: int) -> Iterator[tuple[float, float]]:
    """Learning rate and smoothed loss of each iteration, until they have diverged.

    Args:
        cfg: the training.
        lowest, highest: rates of the first and the last iteration; between them they grow by the same factor each time.
        iterations: how many.
    """
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.batches.start, trainer._trainer.seed, trainer.batches.seed = 0, trainer.seed, trainer.seed
    shares = [rate / cfg.SOLVER.BASE_LR for rate in trainer.scheduler.base_lrs]
    mean, best = 0.0, math.inf
    with trainer.storage:
        for i in range(iterations):
            rate = lowest * (highest / lowest) ** (i / max(1, iterations - 1))
            for group, share in zip(trainer.optimizer.param_groups, shares, strict=True):
                group["lr"] = rate * share
            trainer.iter = trainer.storage.iter = trainer._trainer.iter = i
            try:
                trainer._trainer.run_step()
            except FloatingPointError:  # the loss, a box or a gradient
                return
            loss = trainer.storage.latest()["total_loss"][0]
            mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
            smoothed = mean / (1 - SMOOTHING ** (i + 1))
            yield rate, smoothed
            best = min(best, smoothed)
            if smoothed > DIVERGED * best:
                return


def draw(points: list[tuple[float, float]], proposed: float, picture: Path) -> None:
    """The smoothed loss over the learning rate, and what is proposed."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    axes.plot(*zip(*points, strict=True))
    axes.axvline(proposed, color="gray", linestyle=":", label=f"{proposed:.2g}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="loss")
    axes.legend()
    figure.savefig(picture, dpi=120)
    plt.close(figure)


def find(cfg: CfgNode, lowest: float, highest: float, iterations: int, picture: Path) -> float:
    """The proposed learning rate; the sweep is drawn into a picture.

    Raises:
        InputError: training cannot begin, or the loss did not fall.
    """
    points = list(sweep(cfg, lowest, highest, iterations))
    if not points:
        raise InputError(f"the loss is not finite at the lowest rate {lowest:g} already: give a lower --from")
    rate = min(points, key=lambda point: point[1])[0]
    if rate == points[0][0]:
        raise InputError(f"the loss only rose from the lowest rate {lowest:g} on: give a lower --from")
    draw(points, PROPOSED * rate, picture)
    return PROPOSED * rate


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="path to config file")
    parser.add_argument("--from", dest="lowest", type=float, default=1e-6, help="lowest rate (default: %(default)s)")
    parser.add_argument("--to", dest="highest", type=float, default=1e-1, help="highest rate (default: %(default)s)")
    parser.add_argument("--iterations", type=int, default=100, help="how many (default: %(default)s)")
    parser.add_argument(
        "--output", type=Path, default=Path("learning_rates.png"), help="picture (default: %(default)s)"
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config options")
    args = parser.parse_args(argv)
    if not 0 < args.lowest < args.highest or args.iterations < 2:
        parser.error("rates must be positive and rise, and iterations at least 2")
    try:
        with tempfile.TemporaryDirectory() as folder:
            cfg = load_config(args.config_file, [*args.opts, "OUTPUT_DIR", folder, "DATASETS.TEST", ()])
            check_config(cfg, resume=False, eval_only=False, processes=1)
            rate = find(cfg, args.lowest, args.highest, args.iterations, args.output)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"SOLVER.BASE_LR {rate:.2g}")
    print(args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
