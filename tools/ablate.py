#!/usr/bin/env python3
"""What each switch that makes Sparse R-CNN learn fast brings: alone, and all together as the config has them.

    python tools/ablate.py configs/quickstart.yaml configs/bccd.yaml --seeds 3 --jobs 2

Every run trains a model in one thread, at the published detector's number of iterations and once more at its time: as
many iterations as each variant's steps, timed first, leave of it. The table (Markdown, JSON) and curves of AP over
minutes are saved in --output. Before it starts it says how long it will take. What was stopped continues with the same
command: finished runs are kept, others go on from their last checkpoint.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from detectron2.config import CfgNode
from scipy import stats
from tqdm import tqdm

from sparsercnn import load_config
from sparsercnn.engine import check_config
from sparsercnn.errors import InputError

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parent.parent
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
TIMED_STEPS = 40
EVALUATIONS = 4
"""Points of a curve, the last being the result."""


@dataclass(frozen=True)
class Run:
    """One training: of a variant, with a budget and a seed, in its folder `cfg.OUTPUT_DIR`."""

    data: str
    variant: str
    budget: str
    cfg: CfgNode

    @property
    def folder(self) -> Path:
        return Path(self.cfg.OUTPUT_DIR)


def variant_config(config: Path, variant: str, iterations: int | None, options: list[str]) -> CfgNode:
    """The config of a variant, with warm-up at the same fraction of so many iterations (None for the config's own)."""
    cfg = load_config(config, [*options, *(x for item in VARIANTS[variant].items() for x in item)])
    scale = (iterations or cfg.SOLVER.MAX_ITER) / cfg.SOLVER.MAX_ITER
    cfg.SOLVER.MAX_ITER = max(2, round(cfg.SOLVER.MAX_ITER * scale))
    cfg.SOLVER.WARMUP_ITERS = max(1, round(cfg.SOLVER.WARMUP_ITERS * scale))
    cfg.SOLVER.CHECKPOINT_PERIOD = cfg.TEST.EVAL_PERIOD = -(-cfg.SOLVER.MAX_ITER // EVALUATIONS)
    cfg.DATALOADER.NUM_WORKERS = 0
    return cfg


def train(cfg: CfgNode) -> None:
    """Train in a process of one thread, from where it was stopped if it was; its log is OUTPUT_DIR/output.txt.

    Raises:
        InputError: the process failed.
    """
    folder = Path(cfg.OUTPUT_DIR)
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "run.yaml"
    config.write_text(cfg.dump())
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with open(folder / "output.txt", "a") as log:
        code = subprocess.call(
            [sys.executable, str(ROOT / "train_net.py"), "--config-file", str(config), "--resume"],
            stdout=log,
            stderr=log,
            env=environment,
        )
    if code:
        raise InputError(f"a training failed with status {code}; see {folder / 'output.txt'}")


def seconds_per_step(config: Path, variant: str, options: list[str], folder: Path) -> float:
    """Seconds that a training step takes, timed once and then read from `folder`."""
    result = folder / "seconds.json"
    if not result.exists():
        cfg = variant_config(config, variant, TIMED_STEPS, options)
        cfg.TEST.EVAL_PERIOD, cfg.SOLVER.CHECKPOINT_PERIOD, cfg.DATASETS.TEST = 0, TIMED_STEPS + 1, ()
        cfg.OUTPUT_DIR = str(folder)
        train(cfg)
        last = (folder / "metrics.json").read_text().splitlines()[-1]
        (folder / "model_final.pth").unlink()
        (folder / "last_checkpoint").unlink()
        result.write_text(json.dumps(json.loads(last)["time"]))
    return json.loads(result.read_text())


def runs_of(args: argparse.Namespace, seconds: dict[tuple[str, str], float]) -> Iterator[Run]:
    """All runs, seed by seed, so that a table of all rows is there early."""
    for seed in range(1, args.seeds + 1):
        for config in args.configs:
            for variant in VARIANTS:
                published = args.iterations or load_config(config, args.opts).SOLVER.MAX_ITER
                ratio = seconds[config.stem, "published"] / seconds[config.stem, variant]
                for budget in BUDGETS:
                    iterations = published if budget == "iterations" else round(published * ratio)
                    cfg = variant_config(config, variant, iterations, args.opts)
                    cfg.SEED = seed
                    name = variant.removeprefix("+ ").replace(" ", "_")
                    cfg.OUTPUT_DIR = str(args.output / config.stem / budget / name / f"seed{seed}")
                    # At the published detector's budget its own two runs are one.
                    if not (budget == "time" and variant == "published"):
                        yield Run(config.stem, variant, budget, cfg)


def finish(run: Run) -> None:
    """Train and evaluate a run, unless `result.json` says that it is finished.

    Raises:
        InputError: the folder holds a run with other settings, or training failed.
    """
    result, config = run.folder / "result.json", run.folder / "run.yaml"
    if config.exists() and config.read_text() != run.cfg.dump():
        raise InputError(f"{run.folder} holds a run with other settings: choose another --output, or remove the folder")
    if result.exists():
        return
    train(run.cfg)
    metrics = json.loads((run.folder / "inference" / run.cfg.DATASETS.TEST[0] / "metrics.json").read_text())["bbox"]
    lines = [json.loads(line) for line in (run.folder / "metrics.json").read_text().splitlines()]
    curve = [[line["iteration"], line["bbox/AP"]] for line in lines if "bbox/AP" in line]
    result.write_text(json.dumps({"metrics": metrics, "curve": curve}))
    # An ablation is made for its numbers; the checkpoints of all its runs would fill a disk.
    for checkpoint in run.folder.glob("*.pth"):
        checkpoint.unlink()


def interval(values: list[float]) -> str:
    """Mean and half the 95 % interval of it by Student's t, without the latter for a single value."""
    mean = statistics.mean(values)
    if len(values) == 1:
        return f"{mean:.1f}"
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:.1f} ± {half:.1f}"


def results_of(runs: list[Run]) -> dict[tuple[str, str, str], list[dict]]:
    """Results of finished runs by data, variant and budget."""
    results: dict[tuple[str, str, str], list[dict]] = {}
    for run in runs:
        result = json.loads((run.folder / "result.json").read_text())
        budgets = BUDGETS if run.variant == "published" else (run.budget,)
        for budget in budgets:
            results.setdefault((run.data, run.variant, budget), []).append(result)
    return results


def markdown(results: dict[tuple[str, str, str], list[dict]], seconds: dict[tuple[str, str], float]) -> str:
    """A table for each data set: a row for each variant, AP and AP50 at equal iterations and at equal time."""
    tables = []
    for data in dict.fromkeys(key[0] for key in results):
        head = ["", "step", *(f"{metric}, equal {budget}" for budget in BUDGETS for metric in METRICS)]
        rows = [head, ["---"] + ["---:"] * (len(head) - 1)]
        for variant in VARIANTS:
            cells = [variant, f"{seconds[data, variant] / seconds[data, 'published']:.2f}"]
            for budget in BUDGETS:
                found = [result["metrics"] for result in results[data, variant, budget]]
                cells += [interval([m[metric] for m in found]) for metric in METRICS]
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
            minutes = [(point[0][0] + 1) * seconds[data, variant] / 60 for point in points]
            width = 2.5 if variant in ("published", "together") else 1.0
            axes.plot(minutes, [statistics.mean(ap for _, ap in p) for p in points], label=variant, linewidth=width)
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
        check_config(variant_config(config, "together", args.iterations, args.opts))
    args.output.mkdir(parents=True, exist_ok=True)
    seconds = {}
    for config in args.configs:
        for variant in tqdm(VARIANTS, desc=f"timing {config.stem}"):
            folder = args.output / config.stem / "timing" / variant.removeprefix("+ ").replace(" ", "_")
            seconds[config.stem, variant] = seconds_per_step(config, variant, args.opts, folder)
    runs = list(runs_of(args, seconds))
    left = [run for run in runs if not (run.folder / "result.json").exists()]
    hours = sum(run.cfg.SOLVER.MAX_ITER * seconds[run.data, run.variant] for run in left) / 3600 / args.jobs
    print(f"{len(left)} of {len(runs)} runs to do, {args.jobs} at a time: about {hours:.1f} h, evaluation not counted")
    with ThreadPoolExecutor(args.jobs) as pool:
        futures = [pool.submit(finish, run) for run in runs]
        try:
            for future in tqdm(futures, desc="runs"):
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
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
    parser.add_argument("words", nargs="+", metavar="CONFIG.yaml … [KEY VALUE …]", help="configs, then options")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each variant (default: %(default)s)")
    parser.add_argument("--iterations", type=int, help="of the published detector, instead of SOLVER.MAX_ITER")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("output/ablate"), help="folder for all results")
    args = parser.parse_intermixed_args(argv)
    args.configs = [Path(word) for word in args.words if word.endswith((".yaml", ".yml"))]
    args.opts = args.words[len(args.configs) :]
    if not args.configs or any(word.endswith((".yaml", ".yml")) for word in args.opts):
        parser.error("give the configs (.yaml) first, then the options")
    if min(args.seeds, args.jobs) < 1 or (args.iterations is not None and args.iterations < 2):
        parser.error("--seeds and --jobs must be positive, --iterations at least 2")
    return args


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args = parse_arguments(argv)
    try:
        print(ablate(args, shlex.join(["python", "tools/ablate.py", *argv])))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nStopped. Continue with the same command.", file=sys.stderr)
        return 130
    print(f"Table, JSON and curves: {args.output}/ablation.{{md,json,png}}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
