#!/usr/bin/env python3
"""Compare necks: what they cost and, trained on the same data with the same seeds and budget, how well they detect.

    python tools/compare_necks.py configs/necks/*.yaml --size 800 1216
    python tools/compare_necks.py configs/necks/*.yaml --size 128 128 --train configs/quickstart.yaml \\
        --iterations 400 --seeds 3 SOLVER.BASE_LR 0.0003

With --train the detectors are those of that config; only the neck, the bottom-up network that it stands on and the
levels that boxes read come from the neck configs. The table (Markdown, JSON) and a plot are saved in --output. A
comparison that was stopped continues with the same command: finished runs are kept, the interrupted one resumes from
its last checkpoint.
"""

import argparse
import contextlib
import itertools
import json
import logging
import os
import shlex
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils.env import seed_all_rng
from tqdm import tqdm

from sparsercnn import load_config
from sparsercnn.engine import Trainer, check_config
from sparsercnn.errors import InputError
from sparsercnn.evaluation.costs import measure_costs

matplotlib.use("Agg")
import matplotlib.pyplot as plt

METRICS = {"AP": "AP", "APs": "AP_s", "APm": "AP_m", "APl": "AP_l"}
"""COCO metrics as detectron2 names them, and as the table does."""
PARTS = ("bottom-up", "neck", "head")


def detector_config(neck_config: Path, train_config: Path | None, options: list[str]) -> CfgNode:
    """The detector with the neck of `neck_config`: that config itself, or `train_config` with its neck."""
    cfg = load_config(neck_config, options)
    if train_config:
        neck, cfg = cfg.MODEL, load_config(train_config, options)
        cfg.MODEL.BACKBONE.NAME = neck.BACKBONE.NAME
        cfg.MODEL.NECK = neck.NECK
        cfg.MODEL.TIMM = neck.TIMM
        cfg.MODEL.RESNETS.OUT_FEATURES = neck.RESNETS.OUT_FEATURES
        cfg.MODEL.ROI_HEADS.IN_FEATURES = neck.ROI_HEADS.IN_FEATURES
        cfg.MODEL.ROI_ROUTING.MODE = neck.ROI_ROUTING.MODE
        if neck.NECK.BOTTOM_UP != "build_resnet_backbone":  # weights and frozen stages of the other are a ResNet's
            cfg.MODEL.WEIGHTS, cfg.MODEL.BACKBONE.FREEZE_AT = neck.WEIGHTS, neck.BACKBONE.FREEZE_AT
        cfg.MODEL.NECK.OUT_CHANNELS = cfg.MODEL.SparseRCNN.HIDDEN_DIM
    return cfg


def runs_of(
    configs: dict[str, CfgNode], seeds: int, iterations: int | None, output: Path
) -> Iterator[tuple[str, CfgNode]]:
    """The training runs, every neck with the first seed, then with the next: name of the neck and config of the run."""
    for seed in range(1, seeds + 1):
        for name, cfg in configs.items():
            cfg = cfg.clone()
            cfg.SEED = seed
            cfg.OUTPUT_DIR = str(output / "runs" / name / f"seed{seed}")
            if iterations:
                _set_budget(cfg, iterations)
            # A run that is killed loses a quarter of its budget at most.
            cfg.SOLVER.CHECKPOINT_PERIOD = min(cfg.SOLVER.CHECKPOINT_PERIOD, -(-cfg.SOLVER.MAX_ITER // 4))
            cfg.TEST.EVAL_PERIOD = 0
            cfg.freeze()
            yield name, cfg


def _set_budget(cfg: CfgNode, iterations: int) -> None:
    """Train for so many iterations, with warm-up and steps at the same fractions of the training."""
    scale = iterations / cfg.SOLVER.MAX_ITER
    cfg.SOLVER.MAX_ITER = iterations
    cfg.SOLVER.WARMUP_ITERS = max(1, round(cfg.SOLVER.WARMUP_ITERS * scale))
    cfg.SOLVER.STEPS = tuple(round(step * scale) for step in cfg.SOLVER.STEPS)


class Progress(HookBase):
    """Moves `bar` on by one with each iteration."""

    def __init__(self, bar: tqdm):
        self.bar = bar

    def after_step(self) -> None:
        self.bar.update()


def train(cfg: CfgNode, bar: tqdm) -> dict[str, float | None]:
    """Train and evaluate one run, resume it, or read the stored result of a finished one.

    Returns:
        The COCO metrics; None for sizes of objects that the data does not have.

    Raises:
        InputError: the folder holds a run with other settings.
    """
    folder = Path(cfg.OUTPUT_DIR)
    config_file, result_file = folder / "config.yaml", folder / "result.json"
    if config_file.exists() and config_file.read_text() != cfg.dump():
        raise InputError(f"{folder} holds a run with other settings: choose another --output, or remove the folder")
    if result_file.exists():
        bar.update(cfg.SOLVER.MAX_ITER)
        return json.loads(result_file.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    _write(config_file, cfg.dump())
    seed_all_rng(cfg.SEED)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    bar.update(trainer.start_iter)
    trainer.register_hooks([Progress(bar)])
    trainer.train()
    stored = json.loads((folder / "inference" / cfg.DATASETS.TEST[0] / "metrics.json").read_text())
    result = {metric: stored.get("bbox", {}).get(metric) for metric in METRICS}
    _write(result_file, json.dumps(result))
    # A comparison is made for its numbers; the checkpoints of all its runs would fill a disk.
    for checkpoint in folder.rglob("*.pth"):
        checkpoint.unlink()
    return result


def _write(path: Path, text: str) -> None:
    """Write a file so that it is there completely or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    os.replace(partial, path)


def summarize(results: list[dict[str, float | None]]) -> dict[str, dict]:
    """{metric: mean, standard deviation (None for one run) and the values} over the runs of one neck."""
    summary = {}
    for metric in METRICS:
        values = [value for result in results if (value := result[metric]) is not None]
        mean = statistics.mean(values) if values else None
        deviation = statistics.stdev(values) if len(values) > 1 else None
        summary[metric] = {"mean": mean, "std": deviation, "values": values}
    return summary


def markdown(rows: dict[str, dict], caption: str) -> str:
    """The comparison as a table, one line per neck."""
    first = next(iter(rows.values()))
    devices = list(first["latency_ms"])
    header = ["neck", "params (M)", *(f"{part} GMACs" for part in PARTS), "GMACs"]
    header += [column for device in devices for column in (f"{device} ms", f"{device} MiB")]
    header += METRICS.values() if "metrics" in first else []
    lines = [header, ["---"] + ["---:"] * (len(header) - 1)]
    for name, row in rows.items():
        cells = [name, f"{row['parameters']['total']:.1f}"]
        cells += [f"{row['gmacs'][part]:.2f}" for part in (*PARTS, "total")]
        for device in devices:
            latency = row["latency_ms"][device]
            cells += [f"{latency['median']:.1f} ± {latency['spread'] / 2:.1f}", f"{row['memory_mib'][device]:.0f}"]
        cells += [_mean_and_deviation(metric) for metric in row.get("metrics", {}).values()]
        lines.append(cells)
    return caption + "\n\n" + "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def _mean_and_deviation(metric: dict) -> str:
    if metric["mean"] is None:
        return "–"
    return f"{metric['mean']:.1f}" + (f" ± {metric['std']:.1f}" if metric["std"] is not None else "")


def plot(rows: dict[str, dict], path: Path) -> None:
    """GMACs by part; beside them AP over latency if the necks were trained, else latency."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 1.5 + 0.4 * len(rows)), layout="constrained")
    names, start = list(rows), [0.0] * len(rows)
    for part in PARTS:
        widths = [row["gmacs"][part] for row in rows.values()]
        left.barh(names, widths, left=start, label=part)
        start = [s + w for s, w in zip(start, widths, strict=True)]
    left.set_xlabel("GMACs")
    left.invert_yaxis()
    left.legend()
    device = list(next(iter(rows.values()))["latency_ms"])[-1]
    latencies = [row["latency_ms"][device]["median"] for row in rows.values()]
    right.set_xlabel(f"{device} latency (ms)")
    if "metrics" in next(iter(rows.values())):
        for name, latency, row in zip(names, latencies, rows.values(), strict=True):
            ap = row["metrics"]["AP"]
            right.errorbar(latency, ap["mean"], yerr=ap["std"], fmt="o", capsize=3)
            right.annotate(name, (latency, ap["mean"]), xytext=(4, 4), textcoords="offset points")
        right.set_ylabel("AP")
    else:
        right.barh(names, latencies)
        right.invert_yaxis()
    right.margins(x=0.15)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def compare(args: argparse.Namespace, command: str) -> str:
    """Measure, train if asked to, save everything in `args.output`, and return the table.

    Raises:
        InputError: a config is wrong, or the output folder holds other runs.
    """
    configs = {path.stem: detector_config(path, args.train, args.opts) for path in args.configs}
    if len(configs) < len(args.configs):
        raise InputError("two neck configs have the same file name, which is what the table calls them")
    runs = list(runs_of(configs, args.seeds, args.iterations, args.output)) if args.train else []
    for _, cfg in runs[: len(configs)]:
        check_config(cfg)
    args.output.mkdir(parents=True, exist_ok=True)
    # The progress bar has the terminal; a training run logs to this file.
    logging.basicConfig(filename=args.output / "log.txt", level=logging.INFO)
    rows = measure_costs(configs, args.size, args.rounds)
    caption = f"Input {args.size[0]}×{args.size[1]}, {torch.get_num_threads()} CPU threads, torch {torch.__version__}"
    caption += "; milliseconds: median ± half the interquartile range"
    if runs:
        results: dict[str, list[dict]] = {name: [] for name in configs}
        with (
            tqdm(total=sum(cfg.SOLVER.MAX_ITER for _, cfg in runs), desc="training", unit="it") as bar,
            open(args.output / "log.txt", "a") as log,
            contextlib.redirect_stdout(log),
        ):
            for name, cfg in runs:
                bar.set_description(f"{name}, seed {cfg.SEED} of {args.seeds}")
                results[name].append(train(cfg, bar))
        for name, row in rows.items():
            row["metrics"] = summarize(results[name])
        cfg = runs[0][1]
        caption += f"; {cfg.SOLVER.MAX_ITER} iterations of {cfg.SOLVER.IMS_PER_BATCH} images, {args.seeds} seeds"
        caption += f", {', '.join(cfg.DATASETS.TEST)}"
    table = markdown(rows, f"{caption}. Made by `{command}`.")
    _write(args.output / "necks.md", table)
    _write(args.output / "necks.json", json.dumps({"caption": caption, "command": command, "necks": rows}, indent=2))
    plot(rows, args.output / "necks.png")
    return table


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="+", metavar="NECK_CONFIG.yaml … [KEY VALUE …]", help="configs, then options")
    parser.add_argument("--size", nargs=2, type=int, default=(800, 1216), metavar=("H", "W"), help="input to time")
    parser.add_argument("--rounds", type=int, default=10, help="timed runs of each neck")
    parser.add_argument("--train", type=Path, metavar="CONFIG", help="train each neck as this config says")
    parser.add_argument("--seeds", type=int, default=1, help="training runs of each neck")
    parser.add_argument("--iterations", type=int, help="of each training run, instead of SOLVER.MAX_ITER")
    parser.add_argument("--output", type=Path, default=Path("output/compare_necks"), help="folder for all results")
    args = parser.parse_intermixed_args(argv)
    args.configs = [
        Path(word) for word in itertools.takewhile(lambda word: word.endswith((".yaml", ".yml")), args.words)
    ]
    args.opts = args.words[len(args.configs) :]
    if not args.configs:
        parser.error("give at least one neck config (.yaml) before the options")
    if min(args.rounds, args.seeds, *args.size) < 1 or (args.iterations is not None and args.iterations < 1):
        parser.error("--size, --rounds, --seeds and --iterations must be positive")
    return args


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args = parse_arguments(argv)
    try:
        print(compare(args, shlex.join(["python", "tools/compare_necks.py", *argv])))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print("\nStopped. Continue with the same command.", file=sys.stderr)
        return getattr(stop, "code", 130)
    print(f"Table, JSON and plot: {args.output}/necks.{{md,json,png}}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
