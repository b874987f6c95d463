"""Pictures of a comparison."""

from pathlib import Path

import matplotlib
import numpy as np

from sparsercnn.evaluation.significance import Estimate

from .report import BUDGETS, Findings

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLORS = {"better": "tab:green", "worse": "tab:red", "no conclusion": "tab:gray"}
# Inches.
WIDTH, ROW, MARGIN = 11, 0.35, 1.5


def plot_differences(findings: Findings, path: Path) -> None:
    """For each budget, the difference of each neck to the reference with its interval; gray is no conclusion."""
    order = findings.comparisons["iterations"]
    names = sorted(order, key=lambda name: order[name].difference.mean)
    size = (WIDTH, MARGIN + ROW * len(names))
    figure, axes = plt.subplots(1, len(BUDGETS), figsize=size, sharey=True, layout="constrained")
    for axis, (budget, title) in zip(axes, BUDGETS.items(), strict=True):
        for row, name in enumerate(names):
            comparison = findings.comparisons[budget][name]
            found, color = comparison.difference, COLORS[comparison.verdict]
            axis.errorbar(found.mean, row, xerr=_reach(found), fmt="o", capsize=3, color=color)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_title(title.lower(), fontsize=10)
        axis.set_xlabel("AP against FPN")
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(names)), names)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _reach(estimate: Estimate) -> list[list[float]]:
    """How far the interval goes to both sides of the mean, as matplotlib takes it."""
    return [[max(estimate.mean - estimate.low, 0)], [max(estimate.high - estimate.mean, 0)]]


def plot_costs(findings: Findings, path: Path) -> None:
    """AP at equal iterations over the time of a training step, with intervals."""
    figure, axis = plt.subplots(figsize=(0.7 * WIDTH, 0.45 * WIDTH), layout="constrained")
    for name, score in findings.scores["iterations"].items():
        found, milliseconds = score.interval(), 1000 * findings.costs[name].step_seconds
        axis.errorbar(milliseconds, found.mean, yerr=_reach(found), fmt="o", capsize=3)
        axis.annotate(name, (milliseconds, found.mean), xytext=(5, 4), textcoords="offset points", fontsize=9)
    axis.set_xscale("log")
    axis.set_xlabel("training step (ms of CPU time)")
    axis.set_ylabel("AP at equal iterations")
    axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_levels(findings: Findings, path: Path) -> None:
    """Shares of the levels that annotated boxes belong to, and that boxes read in the trainings of each neck."""
    rows = {"annotated": findings.annotated, **findings.read}
    figure, axis = plt.subplots(figsize=(0.7 * WIDTH, MARGIN + ROW * len(rows)), layout="constrained")
    shares = np.array([np.array(counts) / max(sum(counts), 1) for counts in rows.values()])
    for level, name in enumerate(findings.levels):
        axis.barh(list(rows), 100 * shares[:, level], left=100 * shares[:, :level].sum(1), label=name)
    axis.invert_yaxis()
    axis.set_xlabel("% of boxes")
    figure.legend(ncols=len(findings.levels), loc="outside upper center")
    figure.savefig(path, dpi=120)
    plt.close(figure)
