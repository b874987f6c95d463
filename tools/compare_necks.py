#!/usr/bin/env python3
"""Compare necks as an experiment that can tell something: tuned alike, repeated, tested on the same pictures.

    python tools/compare_necks.py configs/compare/*.yaml

Each config is one comparison. All its detectors are equal but for the neck, and every neck gets the same effort: three
learning rates, tried on a data set that is not the test's, then trainings with the same seeds and the same order of
pictures. They are read off at equal iterations, at equal time and at equal multiply-adds, and compared with FPN:
intervals are those of a bootstrap over seeds and pictures, p-values are corrected for the number of comparisons. First
comes a positive control, FPN without its top-down path. A comparison that cannot see that one ends there.

It measures a few steps of each neck and says how long it will take. A comparison that was stopped continues with the
same command. Tables, numbers and plots are saved in --output.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from sparsercnn.files import write_json, write_whole

# As a program, this file is found without the package that it belongs to.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.comparison import at_least, parse_configs, run
from tools.neck_comparison.arms import DEFAULT, Arm
from tools.neck_comparison.experiment import Experiment
from tools.neck_comparison.laboratory import start_pool
from tools.neck_comparison.plots import plot_costs, plot_differences, plot_levels
from tools.neck_comparison.report import Findings, interval, markdown


def compare(args: argparse.Namespace, command: str) -> bool:
    """Do all comparisons and save what they find.

    Returns:
        Whether the positive control was seen in all of them.

    Raises:
        InputError: a config or the data is wrong, or the output folder holds other comparisons.
    """
    arms = [Arm.of(config) for config in args.neck] or list(DEFAULT)
    common = arms, tuple(args.opts), args.seeds, args.output
    with start_pool(args.processes) as pool:
        experiments = [Experiment(config, *common, pool, args.processes) for config in args.configs]
        for experiment in experiments:
            print(f"{experiment.name}: preparing data and features, measuring steps ...", flush=True)
            experiment.prepare()
        total = sum(experiment.seconds() for experiment in experiments)
        for experiment in experiments:
            print(f"{experiment.name}: about {experiment.seconds() / args.processes / 60:.0f} minutes")
        print(f"All together about {total / args.processes / 60:.0f} minutes, {args.processes} trainings at a time.")
        is_seen = True
        with tqdm(total=total, bar_format="{l_bar}{bar}| {elapsed} < {remaining}") as bar:
            for experiment in experiments:
                found = experiment.run(bar)
                if isinstance(found, Findings):
                    save(found, experiment.folder, command)
                    continue
                is_seen = False
                bar.write(
                    f"{experiment.name}: the top-down path of FPN brings {interval(found, sign=True)} AP, which is not "
                    "above nothing. What cannot see that cannot tell necks apart; this comparison ends here."
                )
    return is_seen


def save(findings: Findings, folder: Path, command: str) -> None:
    """Write `report.md`, `results.json` and the plots of a comparison, and print the report."""
    report = f"{markdown(findings)}\nMade by `{command}`.\n"
    write_whole(folder / "report.md", lambda file: file.write(report.encode()))
    write_json(folder / "results.json", plain(findings))
    plot_differences(findings, folder / "differences.png")
    plot_costs(findings, folder / "costs.png")
    plot_levels(findings, folder / "levels.png")
    tqdm.write(report)


def plain(findings: Findings) -> dict:
    """The findings as plain values; of AP those of the seeds."""
    return {
        **vars(findings),
        "control_gain": asdict(findings.control_gain),
        "costs": {name: asdict(cost) for name, cost in findings.costs.items()},
        "scores": {
            budget: {name: {"seeds": s.values.tolist(), **asdict(s.interval())} for name, s in scores.items()}
            for budget, scores in findings.scores.items()
        },
        "comparisons": {
            budget: {name: {**asdict(c), "verdict": c.verdict} for name, c in found.items()}
            for budget, found in findings.comparisons.items()
        },
    }


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--neck",
        action="append",
        type=Path,
        default=[],
        metavar="CONFIG",
        help="a neck to compare with FPN, of a config like those in configs/necks; may be repeated (default: all)",
    )
    parser.add_argument("--seeds", type=at_least(2), default=5, help="trainings of each neck (default: %(default)s)")
    parser.add_argument(
        "--processes", type=at_least(1), default=os.cpu_count(), help="trainings at a time (default: processors)"
    )
    parser.add_argument("--output", type=Path, default=Path("output/compare_necks"), help="folder for all results")
    return parse_configs(parser, argv)


def main(argv: list[str] | None = None) -> int:
    """Do what the command line asks for; returns the exit status, 1 if a positive control was not seen."""
    argv = sys.argv[1:] if argv is None else argv
    args = parse_arguments(argv)

    def compare_and_print(command: str) -> int:
        is_seen = compare(args, command)
        print(f"Reports and plots: {args.output}/*/")
        return 0 if is_seen else 1

    return run("tools/compare_necks.py", argv, compare_and_print)


if __name__ == "__main__":
    sys.exit(main())
