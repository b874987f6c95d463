#!/usr/bin/env python3
"""Compare detectors on several necks, each trained for the same time.

    python tools/compare_detectors.py configs/quickstart.yaml configs/fasterrcnn/quickstart.yaml \\
        configs/efficientdet/quickstart.yaml --minutes 4 --output output/detectors/shapes MODEL.NECK.NORM BN

Every config is a detector; it is trained with each of --necks, which keep the config's levels and width. Steps are
timed in turns first, and each pair gets as many iterations as fit into --minutes of one thread. Trainings are processes
of one thread, side by side. The table (Markdown, JSON) and a plot of AP over milliseconds are saved in --output. What
was stopped continues with the same command: finished trainings are kept, others go on from their last checkpoint.
"""

import argparse
import contextlib
import io
import itertools
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import detectron2.data.transforms as T
import matplotlib
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn

from sparsercnn import load_config
from sparsercnn.data.images import read_image
from sparsercnn.engine import SparseRCNNCheckpointer, build_model, check_config
from sparsercnn.errors import InputError
from sparsercnn.evaluation.costs import count_total_gmacs
from sparsercnn.files import write_json
from sparsercnn.predictor import Predictor

# As a program, this file is found without the packages that it belongs to.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import harness
from tools.comparison import parse_configs, run
from tools.step_times import measured_once
from tools.trainings import (
    add_arguments,
    check_test_set,
    interval,
    read_memory,
    read_metrics,
    train_all,
    training,
    weights_of,
)

matplotlib.use("Agg")
import matplotlib.pyplot as plt

Name = tuple[str, str]
"""Of a detector and of a neck."""
# In which a picture is timed.
ROUNDS = 15


def detectors(args: argparse.Namespace) -> dict[Name, CfgNode]:
    """The config of each pair.

    Raises:
        InputError: a config is wrong or takes no neck, two are of the same detector, or they differ in the test set.
    """
    found = {}
    for config in args.configs:
        for neck in args.necks:
            cfg = load_config(config, [*args.opts, "MODEL.NECK.NAME", neck])
            check_config(cfg)
            check_test_set(cfg)
            if cfg.MODEL.BACKBONE.NAME != "build_neck_backbone":
                raise InputError(f"{config}: MODEL.BACKBONE.NAME must be build_neck_backbone, which takes any neck")
            name = cfg.MODEL.META_ARCHITECTURE, neck
            if name in found:
                raise InputError(f"{config} is a second config of {name[0]}, or the neck {neck} is named twice")
            found[name] = cfg
    if len({cfg.DATASETS.TEST for cfg in found.values()}) > 1:
        raise InputError("the configs differ in DATASETS.TEST")
    return found


def average_recall(cfg: CfgNode) -> float:
    """COCO's AR@100 of the detections that a finished training left, in percent."""
    data = cfg.DATASETS.TEST[0]
    folder = Path(cfg.OUTPUT_DIR) / "inference" / data
    # Data that are not in COCO's format were written in it by the evaluation.
    file = MetadataCatalog.get(data).get("json_file") or folder / f"{data}_coco_format.json"
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(file))
        results = folder / "coco_instances_results.json"
        if not json.loads(results.read_text()):
            return 0.0
        evaluation = COCOeval(truth, truth.loadRes(str(results)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return 100 * float(evaluation.stats[8])


def measure_pictures(runs: Mapping[Name, CfgNode]) -> dict[Name, float]:
    """Milliseconds that a picture of the test set takes: medians of prepared models in turns, in all threads."""
    finders: dict[Name, harness.Function] = {}
    for name, cfg in runs.items():
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.WEIGHTS = str(weights_of(cfg))
        finders[name] = partial(Predictor(cfg), first_picture(cfg))
    times = harness.measure(finders, ROUNDS, "cpu", warmup=2)
    return {name: statistics.median(of_name) for name, of_name in times.items()}


def first_picture(cfg: CfgNode) -> np.ndarray:
    """(H, W, 3) uint8 RGB, of the test set."""
    return read_image(DatasetCatalog.get(cfg.DATASETS.TEST[0])[0]["file_name"], "RGB")


def load_model(cfg: CfgNode) -> nn.Module:
    """The model that a training left."""
    model = build_model(cfg)
    SparseRCNNCheckpointer(model).load(str(weights_of(cfg)))
    return model


def gmacs(cfg: CfgNode, model: nn.Module) -> float:
    """Billions of multiply-adds for the first picture of the test set, at the size that the detector sees it."""
    resize = T.ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)
    image = first_picture(cfg)
    picture = resize.get_transform(image).apply_image(image).transpose(2, 0, 1)
    return count_total_gmacs(model, torch.from_numpy(picture.copy()).float())


def rows_of(runs: Mapping[Name, Sequence[CfgNode]]) -> list[dict]:
    """A row for each pair, of its finished trainings."""
    milliseconds = measure_pictures({name: configs[0] for name, configs in runs.items()})
    rows = []
    for (detector, neck), configs in runs.items():
        metrics = [read_metrics(cfg) for cfg in configs]
        model = load_model(configs[0])
        row = {
            "detector": detector,
            "neck": neck,
            "iterations": configs[0].SOLVER.MAX_ITER,
            "AP": [found["AP"] for found in metrics],
            "AP50": [found["AP50"] for found in metrics],
            "AR": [average_recall(cfg) for cfg in configs],
            "parameters": sum(p.numel() for p in model.parameters()) / 1e6,
            "gmacs": gmacs(configs[0], model),
            "ms": milliseconds[detector, neck],
            "training_mib": max(map(read_memory, configs)),
        }
        rows.append(row)
    return rows


def markdown(rows: Sequence[dict]) -> str:
    """The rows as a table."""
    head = ["detector", "neck", "iterations", "AP", "AP50", "AR", "parameters (M)", "GMACs", "ms", "training MiB"]
    lines = [head, ["---"] * 2 + ["---:"] * (len(head) - 2)]
    for row in rows:
        quality = [interval(row[metric]) for metric in ("AP", "AP50", "AR")]
        costs = [f"{row['parameters']:.2f}", f"{row['gmacs']:.2f}", f"{row['ms']:.1f}", f"{row['training_mib']:.0f}"]
        lines.append([row["detector"], row["neck"], str(row["iterations"]), *quality, *costs])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def plot(rows: Sequence[dict], path: Path) -> None:
    """AP over milliseconds of a picture: a color for each detector, a mark for each neck, a bar from worst to best."""
    colors = {name: f"C{i}" for i, name in enumerate(dict.fromkeys(row["detector"] for row in rows))}
    marks = dict(zip(dict.fromkeys(row["neck"] for row in rows), itertools.cycle("os^Dv*Px"), strict=False))
    figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
    for row in rows:
        mean = statistics.mean(row["AP"])
        spread = [[mean - min(row["AP"])], [max(row["AP"]) - mean]]
        look = {"color": colors[row["detector"]], "marker": marks[row["neck"]]}
        axes.errorbar(row["ms"], mean, spread, capsize=3, label=f"{row['detector']}, {row['neck']}", **look)
    axes.set(xlabel="milliseconds of a picture, prepared", ylabel="AP", xlim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def compare(args: argparse.Namespace, command: str) -> str:
    """Train and evaluate whatever is not finished yet, save everything in `args.output`, and return the table.

    Raises:
        InputError: a config is wrong, the output folder holds another comparison, or a training failed.
    """
    configs = detectors(args)
    print("Measuring steps ...", flush=True)
    seconds = measured_once({"/".join(name): cfg for name, cfg in configs.items()}, args.output / "seconds.json")
    runs = {
        name: [
            training(cfg, seed, args.output / "runs" / "-".join(name) / f"seed{seed}", iterations)
            for seed in range(1, args.seeds + 1)
        ]
        for name, cfg in configs.items()
        for iterations in [round(60 * args.minutes / seconds["/".join(name)])]
    }
    print(
        f"{len(runs)} detectors, {args.seeds} seeds, {args.jobs} trainings at a time: about "
        f"{len(runs) * args.seeds * args.minutes / args.jobs:.0f} minutes, evaluation not counted"
    )
    # Seed by seed, so that a first table is there early.
    train_all([cfg for of_one_seed in zip(*runs.values(), strict=True) for cfg in of_one_seed], args.jobs, True)
    rows = rows_of(runs)
    spread = ", ± half the 95 % interval of the mean (Student's t)" if args.seeds > 1 else ""
    (data, *_), *_ = (cfg.DATASETS.TEST for cfg in configs.values())
    table = (
        f"{args.minutes:g} minutes of training in one thread each, {args.seeds} seeds{spread}, tested on {data}. "
        f"Made by `{command}`. {harness.environment('cpu')}\n\n{markdown(rows)}"
    )
    (args.output / "detectors.md").write_text(table)
    write_json(args.output / "detectors.json", {"command": command, "rows": rows})
    plot(rows, args.output / "detectors.png")
    return table


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--necks", nargs="+", default=["FPN", "BiFPN", "SA"], help="default: %(default)s")
    parser.add_argument("--minutes", type=float, required=True, help="of each training, in one thread")
    add_arguments(parser, seeds=3, output=Path("output/detectors"))
    args = parse_configs(parser, argv)
    if args.minutes <= 0:
        parser.error("--minutes must be positive")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args = parse_arguments(argv)

    def compare_and_print(command: str) -> int:
        print(compare(args, command))
        print(f"Table, JSON and plot: {args.output}/detectors.{{md,json,png}}")
        return 0

    return run("tools/compare_detectors.py", argv, compare_and_print)


if __name__ == "__main__":
    sys.exit(main())
