"""Tables of a comparison, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sparsercnn.evaluation.coco_matches import AREAS
from sparsercnn.evaluation.significance import LEVEL, Estimate

from .costs import Cost
from .results import Comparison, Score

BUDGETS = {
    "iterations": "Equal iterations",
    "time": "Equal training time",
    "multiply-adds": "Equal multiply-adds",
}


@dataclass(frozen=True)
class Findings:
    """All that a comparison has found.

    Attributes:
        title: of the comparison.
        caption: what was trained and tested, and how.
        levels: names of the pyramid's levels, lowest first.
        annotated: how many annotated training boxes belong to each.
        costs: of each neck.
        rates: learning rate of each neck.
        iterations: {budget: {neck: iterations}}.
        scores: {budget: {neck: AP}}.
        by_size: {budget: {neck: {area: mean AP}}}.
        comparisons: {budget: {neck: comparison with the reference}}.
        control_gain: what the top-down path brings at equal iterations.
        read: {neck: how many boxes read each level in training}.
        unreached: {neck: its parameters that had no gradient in any training}.
        diverged: {neck: how many trainings ended in infinities}.
        tuned_at_the_edge: necks whose learning rate is the smallest or the largest of those tried.
    """

    title: str
    caption: str
    levels: Sequence[str]
    annotated: Sequence[int]
    costs: Mapping[str, Cost]
    rates: Mapping[str, float]
    iterations: Mapping[str, Mapping[str, int]]
    scores: Mapping[str, Mapping[str, Score]]
    by_size: Mapping[str, Mapping[str, Mapping[str, float]]]
    comparisons: Mapping[str, Mapping[str, Comparison]]
    control_gain: Estimate
    read: Mapping[str, Sequence[int]]
    unreached: Mapping[str, Sequence[str]]
    diverged: Mapping[str, int]
    tuned_at_the_edge: Sequence[str]


def markdown(findings: Findings) -> str:
    """The whole report."""
    gain = interval(findings.control_gain, sign=True)
    parts = [f"## {findings.title}", findings.caption]
    parts.append(f"Positive control: the top-down path of FPN brings {gain} AP at equal iterations, and so is seen.")
    for budget, title in BUDGETS.items():
        parts += [f"### {title}", score_table(findings, budget)]
    parts += ["### Costs", cost_table(findings), "### Levels", level_table(findings), remarks(findings)]
    return "\n\n".join(parts) + "\n"


def score_table(findings: Findings, budget: str) -> str:
    """AP of each neck at one budget, best first, and its difference to the reference."""
    rows = [["neck", "iterations", "AP", *(f"AP_{area[0]}" for area in AREAS[1:]), "against FPN", "p (Holm)", ""]]
    scores = findings.scores[budget]
    for name in sorted(scores, key=lambda name: -scores[name].values.mean()):
        sizes = [f"{findings.by_size[budget][name][area]:.1f}" for area in AREAS[1:]]
        comparison = findings.comparisons[budget].get(name)
        against = ["", "", ""]
        if comparison:
            against = [interval(comparison.difference, sign=True), f"{comparison.p_value:.3f}", comparison.verdict]
        iterations = str(findings.iterations[budget][name])
        rows.append([name, iterations, interval(scores[name].interval()), *sizes, *against])
    return table(rows, left=(0, len(rows[0]) - 1))


def interval(estimate: Estimate, sign: bool = False) -> str:
    """A mean and its interval: "31.2 [30.1, 32.3]"."""
    form = "+.1f" if sign else ".1f"
    return f"{estimate.mean:{form}} [{estimate.low:{form}}, {estimate.high:{form}}]".replace("-", "−")


def cost_table(findings: Findings) -> str:
    """What each neck costs, and the learning rate that it was trained with."""
    measured = ["neck", "parameters (M)", "neck GMACs", "head GMACs", "training step (ms)", "picture (ms)"]
    rows = [[*measured, "learning rate"]]
    for name, cost in sorted(findings.costs.items(), key=lambda item: item[1].step_seconds):
        gmacs = f"{cost.neck_gmacs:.3f}", f"{cost.head_gmacs:.3f}"
        times = f"{1000 * cost.step_seconds:.0f}", f"{1000 * cost.test_seconds:.0f}"
        rows.append([name, f"{cost.parameters:.2f}", *gmacs, *times, f"{findings.rates[name]:g}"])
    return table(rows)


def level_table(findings: Findings) -> str:
    """Which levels annotated boxes belong to, and which ones boxes read in the trainings, in percent."""
    rows = [["% of boxes", *findings.levels], ["annotated", *shares(findings.annotated)]]
    rows += [[f"read by {name}", *shares(counts)] for name, counts in findings.read.items()]
    return table(rows)


def shares(counts: Sequence[int]) -> list[str]:
    """Percentages of a total."""
    total = max(sum(counts), 1)
    return [f"{100 * count / total:.1f}" for count in counts]


def remarks(findings: Findings) -> str:
    """What a reader must know: parameters without gradient, failed trainings, learning rates at the edge."""
    idle = {name: names for name, names in findings.unreached.items() if names}
    lines = [f"- No gradient reached these parameters of {name}: {', '.join(names)}." for name, names in idle.items()]
    if not idle:
        lines.append("- A gradient reached every parameter of every neck.")
    lines += [
        f"- {count} trainings of {name} ended in infinities." for name, count in findings.diverged.items() if count
    ]
    if findings.tuned_at_the_edge:
        names = ", ".join(findings.tuned_at_the_edge)
        lines.append(
            f"- The best learning rate is at the end of those tried, and a better one may lie beyond: {names}."
        )
    lines.append(f"- Intervals have level {LEVEL:.0%}; p-values are corrected for all comparisons of the three tables.")
    return "\n".join(lines)


def table(rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """A Markdown table; the columns `left` are aligned to the left, the others to the right."""
    rule = ["---" if column in left else "---:" for column in range(len(rows[0]))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [rows[0], rule, *rows[1:]])
