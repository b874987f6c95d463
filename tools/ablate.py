#!/usr/bin/env python3
"""What each switch that makes Sparse R-CNN learn fast brings: alone, and those together that the config has.

    python tools/ablate.py configs/quickstart.yaml configs/bccd.yaml --seeds 3 --jobs 2

"Published" has none of them; sizes, proposals and stages are those of the config. A run trains in one thread, at the
published choices' number of iterations and once more at their time: as many iterations as its steps, timed in turns
first, leave of it. The table (Markdown, JSON) and curves of AP over minutes are saved in --output. Before it starts it
says how long it will take. What was stopped continues with the same command: finished runs are kept, others go on from
their last checkpoint.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from detectron2.config import CfgNode

from sparsercnn import load_config
from sparsercnn.engine import check_config
from sparsercnn.errors import InputError

# As a program, this file is found without the package that it belongs to.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.comparison import at_least, parse_configs, run
from tools.step_times import measured_once
from tools.trainings import (
    add_arguments,
    check_test_set,
    interval,
    is_finished,
    read_curve,
    read_metrics,
    train_all,
    training,
)

matplotlib.use("Agg")
import matplotlib.pyplot as plt

NODE = "MODEL.SparseRCNN."
PUBLISHED = {
    f"{NODE}ASSIGNMENT": "one_to_one",
    f"{NODE}CLASS_LOSS": "focal",
    f"{NODE}PROPOSALS": "image",
    f"{NODE}DENOISING_QUERIES": 0,
    f"{NODE}SHARED_STAGES": False,
    f"{NODE}DISTINCT_OVERLAP": 1.0,
    "SOLVER.EMA_DECAY": 0.0,
}
SWITCHES: dict[str, dict[str, object]] = {
    "dynamic_k": {f"{NODE}ASSIGNMENT": "dynamic_k"},
    "varifocal": {f"{NODE}CLASS_LOSS": "varifocal"},
    "matchability": {f"{NODE}CLASS_LOSS": "matchability"},
    "grid": {f"{NODE}PROPOSALS": "grid"},
    "kmeans": {f"{NODE}PROPOSALS": "kmeans"},
    "dense": {f"{NODE}PROPOSALS": "dense"},
    "denoising": {f"{NODE}DENOISING_QUERIES": 20},
    "distinct": {f"{NODE}DISTINCT_OVERLAP": 0.6},
    "shared stages": {f"{NODE}SHARED_STAGES": True},
    "EMA": {"SOLVER.EMA_DECAY": 0.99},
}
VARIANTS: dict[str, dict[str, object]] = {
    "published": PUBLISHED,
    **{f"+ {name}": PUBLISHED | switch for name, switch in SWITCHES.items()},
    "together": {},
}
"""Options of each row; "together" is the config as it is."""
BUDGETS = ("iterations", "time")
METRICS = ("AP", "AP50")
# Two curves are thick and black; the others have matplotlib's colors, of which there are as many as switches.
STANDING_OUT = {"published": "--", "together": "-"}
SAME_TIME = 0.05
"""Where steps differ by less than this share from the published detector's, one training serves both budgets."""


@dataclass(frozen=True)
class Run:
    """One training: of a variant on some data, for one budget or for both."""

    data: str
    variant: str
    budgets: tuple[str, ...]
    cfg: CfgNode


def variant_config(config: Path, variant: str, options: list[str]) -> CfgNode:
    """The config of a variant."""
    return load_config(config, [*options, *(x for item in VARIANTS[variant].items() for x in item)])


def runs_of(args: argparse.Namespace, seconds: dict[tuple[str, str], float]) -> Iterator[Run]:
    """All runs, seed by seed, so that a table of all rows is there early."""
    for seed in range(1, args.seeds + 1):
        for config in args.configs:
            for variant in VARIANTS:
                cfg = variant_config(config, variant, args.opts)
                published = args.iterations or cfg.SOLVER.MAX_ITER
                ratio = seconds[config.stem, "published"] / seconds[config.stem, variant]
                iterations = {"iterations": published, "time": round(published * ratio)}
                # At the published detector's time per step one training serves both budgets.
                one_serves_both = abs(ratio - 1) < SAME_TIME
                for budgets in [BUDGETS] if one_serves_both else [(budget,) for budget in BUDGETS]:
                    name = variant.removeprefix("+ ").replace(" ", "_")
                    folder = args.output / config.stem / budgets[0] / name / f"seed{seed}"
                    whole = training(cfg, seed, folder, iterations[budgets[0]], with_curve=True)
                    yield Run(config.stem, variant, budgets, whole)


def results_of(runs: list[Run]) -> dict[tuple[str, str, str], list[dict]]:
    """Results of finished runs by data, variant and budget."""
    results: dict[tuple[str, str, str], list[dict]] = {}
    for done in runs:
        result = {"metrics": read_metrics(done.cfg), "curve": read_curve(done.cfg)}
        for budget in done.budgets:
            results.setdefault((done.data, done.variant, budget), []).append(result)
    return results


def markdown(results: dict[tuple[str, str, str], list[dict]], seconds: dict[tuple[str, str], float]) -> str:
    """A table for each data set: a row for each variant, at equal iterations and at equal time.

    The gain is that of AP over the published detector with the same seed, which differs less than AP itself.
    """
    tables = []
    for data in dict.fromkeys(key[0] for key in results):
        columns = [f"{column}, equal {budget}" for budget in BUDGETS for column in ("AP", "gain", "AP50")]
        rows = [["", "step", *columns], ["---"] + ["---:"] * (1 + len(columns))]
        for variant in VARIANTS:
            cells = [variant, f"{seconds[data, variant] / seconds[data, 'published']:.2f}"]
            for budget in BUDGETS:
                ap, ap50 = ([run["metrics"][m] for run in results[data, variant, budget]] for m in METRICS)
                published = [run["metrics"]["AP"] for run in results[data, "published", budget]]
                gains = [ours - theirs for ours, theirs in zip(ap, published, strict=True)]
                cells += [interval(ap), "" if variant == "published" else interval(gains), interval(ap50)]
            rows.append(cells)
        tables.append(f"{data}\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows))
    return "\n\n".join(tables) + "\n"


def plot(results: dict[tuple[str, str, str], list[dict]], seconds: dict[tuple[str, str], float], path: Path) -> None:
    """AP over minutes of training in one thread, the mean over seeds, a panel for each data set."""
    names = list(dict.fromkeys(key[0] for key in results))
    figure, panels = plt.subplots(1, len(names), figsize=(7 * len(names), 5), squeeze=False, layout="constrained")
    for data, axes in zip(names, panels[0], strict=True):
        for variant in VARIANTS:
            curves = [result["curve"] for result in results[data, variant, "time"]]
            points = list(zip(*curves, strict=False))
            minutes = [point[0][0] * seconds[data, variant] / 60 for point in points]
            style = STANDING_OUT.get(variant)
            look: dict = {"color": "black", "linestyle": style, "linewidth": 2.5} if style else {}
            axes.plot(minutes, [statistics.mean(ap for _, ap in p) for p in points], label=variant, **look)
        axes.set(title=data, xlabel="minutes of training, one thread", ylabel="AP")
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def ablate(args: argparse.Namespace, command: str) -> str:
    """Time, train and evaluate whatever is not finished yet, save everything in `args.output`, return the table.

    Raises:
        InputError: a config is wrong, the output folder holds other runs, or a training failed.
    """
    if len({config.stem for config in args.configs}) < len(args.configs):
        raise InputError("two configs have the same file name, which is what the table calls them")
    for config in args.configs:
        cfg = variant_config(config, "together", args.opts)
        check_config(cfg)
        check_test_set(cfg)
        if cfg.MODEL.META_ARCHITECTURE != "SparseRCNN":
            raise InputError(f"{config} is of {cfg.MODEL.META_ARCHITECTURE}; the switches are those of SparseRCNN")
    seconds = {}
    for config in args.configs:
        print(f"{config.stem}: measuring steps ...", flush=True)
        configs = {variant: variant_config(config, variant, args.opts) for variant in VARIANTS}
        for variant, time in measured_once(configs, args.output / config.stem / "seconds.json").items():
            seconds[config.stem, variant] = time
    runs = list(runs_of(args, seconds))
    left = [run for run in runs if not is_finished(run.cfg)]
    hours = sum(run.cfg.SOLVER.MAX_ITER * seconds[run.data, run.variant] for run in left) / 3600 / args.jobs
    print(f"{len(left)} of {len(runs)} runs to do, {args.jobs} at a time: about {hours:.1f} h, evaluation not counted")
    train_all([run.cfg for run in runs], args.jobs)
    results = results_of(runs)
    caption = f"Steps relative to the published detector's; mean over {args.seeds} seeds"
    caption += " ± half the 95 % interval of the mean (Student's t)" if args.seeds > 1 else ""
    table = f"{caption}. Made by `{command}`.\n\n{markdown(results, seconds)}"
    (args.output / "ablation.md").write_text(table)
    rows = [{"data": d, "variant": v, "budget": b, "results": r} for (d, v, b), r in results.items()]
    (args.output / "ablation.json").write_text(json.dumps({"command": command, "rows": rows}, indent=2))
    plot(results, seconds, args.output / "ablation.png")
    return table


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=at_least(2), help="of the published choices, instead of SOLVER.MAX_ITER")
    add_arguments(parser, seeds=3, output=Path("output/ablate"))
    return parse_configs(parser, argv)


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args = parse_arguments(argv)

    def compare(command: str) -> int:
        print(ablate(args, command))
        print(f"Table, JSON and curves: {args.output}/ablation.{{md,json,png}}")
        return 0

    return run("tools/ablate.py", argv, compare)


if __name__ == "__main__":
    sys.exit(main())
