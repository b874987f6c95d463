#!/usr/bin/env python3
"""The tables of the FPN paper: RPN, Fast R-CNN and Faster R-CNN on C4, on C5, on FPN and on what is left of it.

    python tools/fpn_tables.py --train configs/fasterrcnn/fpn_paper_shapes.yaml --seeds 3
    python tools/fpn_tables.py --tables rpn --rows c5 fpn --train configs/fasterrcnn/fpn_paper_bccd.yaml

The rows are the files of configs/fasterrcnn/fpn_paper/; what --train says replaces their keys, and KEY VALUE options
replace both. Fast R-CNN gets the proposals of an RPN on FPN, trained for it, on training and test images.
Trainings are processes of one thread, side by side. Tables (Markdown, JSON) are saved in --output. What was stopped
continues with the same command: finished trainings are kept, others go on from their last checkpoint.

Lin et al., Feature Pyramid Networks for Object Detection, CVPR 2017, tables 1 to 3.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

from detectron2.config import CfgNode

from sparsercnn import load_config
from sparsercnn.config_file import leaves
from sparsercnn.engine import check_config
from sparsercnn.errors import InputError

# As a program, this file is found without the package that it belongs to.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.comparison import at_least, run
from tools.trainings import add_arguments, read_metrics, train_all, training

CONFIGS = Path(__file__).parent.parent / "configs" / "fasterrcnn" / "fpn_paper"
ROWS = ("c4", "c5", "fpn", "bottom_up", "no_laterals", "finest_only")
RECALLS = {"AR@100": "AR^100", "AR@1000": "AR^1k", "ARs@1000": "AR_s^1k", "ARm@1000": "AR_m^1k", "ARl@1000": "AR_l^1k"}
PRECISIONS = {"AP50": "AP@0.5", "AP": "AP", "APs": "AP_s", "APm": "AP_m", "APl": "AP_l"}
# Of each table: its title, the task that is evaluated, and {metric: name in the paper}.
TABLES = {
    "rpn": ("RPN", "box_proposals", RECALLS),
    "fast": ("Fast R-CNN on fixed proposals", "bbox", PRECISIONS),
    "faster": ("Faster R-CNN", "bbox", PRECISIONS),
}


def row_config(name: str, changes: Path | None, options: list[str]) -> CfgNode:
    """The config of one row of one table, such as "rpn_c4", with the keys of the file `changes` and then `options`."""
    if changes and not changes.is_file():
        raise InputError(f"config file {changes} does not exist")
    content = CfgNode.load_yaml_with_base(str(changes), allow_unsafe=False) if changes else {}
    changed = [x for key_and_value in leaves(content) for x in key_and_value]
    return load_config(CONFIGS / f"{name}.yaml", [*changed, *options])


def plan(args: argparse.Namespace) -> tuple[list[CfgNode], dict[str, list[CfgNode]]]:
    """Configs of the trainings that make the proposals of Fast R-CNN, none where it needs none, and of those of rows.

    Rows are called as in `row_config`.
    """
    names = [f"{table}_{row}" for table in args.tables for row in args.rows]
    configs = {name: row_config(name, args.train, args.opts) for name in names}
    makers = []
    if "fast" in args.tables and not args.published_proposals:
        cfg = row_config("rpn_fpn", args.train, args.opts)
        cfg.DATASETS.TEST = tuple(dict.fromkeys(cfg.DATASETS.TRAIN + cfg.DATASETS.TEST))
        makers = [training(cfg, 1, args.output / "runs" / "proposals", args.iterations)]
        made = Path(makers[0].OUTPUT_DIR) / "inference"
        for name, cfg in configs.items():
            if name.startswith("fast_"):
                for split in ("TRAIN", "TEST"):
                    files = tuple(str(made / data / "box_proposals.pkl") for data in cfg.DATASETS[split])
                    cfg.DATASETS[f"PROPOSAL_FILES_{split}"] = files
    rows = {
        name: [
            training(cfg, seed, args.output / "runs" / name / f"seed{seed}", args.iterations)
            for seed in range(1, args.seeds + 1)
        ]
        for name, cfg in configs.items()
    }
    return makers, rows


def markdown(table: str, rows: dict[str, list[dict[str, float | None]]]) -> str:
    """One table: a line for each row, the mean over its runs and, of several, their standard deviation."""
    title, _, columns = TABLES[table]
    lines = [["", *columns.values()], ["---"] + ["---:"] * len(columns)]
    lines += [[row, *(cell([run[metric] for run in runs]) for metric in columns)] for row, runs in rows.items()]
    return f"{title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def cell(values: list[float | None]) -> str:
    """Mean ± standard deviation; a dash where the data have no such objects."""
    numbers = [value for value in values if value is not None]
    if not numbers:
        return "–"
    spread = f" ± {statistics.stdev(numbers):.1f}" if len(numbers) > 1 else ""
    return f"{statistics.mean(numbers):.1f}{spread}"


def make_tables(args: argparse.Namespace, command: str) -> str:
    """Train all rows, and return the tables as they are saved.

    Raises:
        InputError: a config is wrong, the output folder holds other trainings, or one failed.
    """
    makers, rows = plan(args)
    for cfg, *_ in rows.values():
        check_config(cfg if args.published_proposals else _without_proposals(cfg))
    train_all(makers, args.jobs)
    # Seed by seed, so that a first table is there early.
    train_all([cfg for of_one_seed in zip(*rows.values(), strict=True) for cfg in of_one_seed], args.jobs)
    results: dict[str, dict[str, list]] = {table: {} for table in args.tables}
    for name, configs in rows.items():
        table, _, row = name.partition("_")
        results[table][row] = [read_metrics(cfg, TABLES[table][1]) for cfg in configs]
    cfg = next(iter(rows.values()))[0]
    caption = f"{cfg.SOLVER.MAX_ITER} iterations of {cfg.SOLVER.IMS_PER_BATCH} images, {args.seeds} seeds (± is their "
    caption += f"standard deviation), {cfg.DATASETS.TEST[0]}. Made by `{command}`."
    text = "\n".join([caption, "", *(markdown(table, found) for table, found in results.items())])
    (args.output / "fpn_tables.md").write_text(text)
    (args.output / "fpn_tables.json").write_text(json.dumps({"command": command, "tables": results}, indent=2))
    return text


def _without_proposals(cfg: CfgNode) -> CfgNode:
    """The config without proposal files, which a run of this very command has still to make."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.LOAD_PROPOSALS, cfg.MODEL.PROPOSAL_GENERATOR.NAME = False, "RPN"
    return cfg


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config options for all runs, first on the line")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES), help="default: all")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="default: all")
    parser.add_argument("--train", type=Path, metavar="CONFIG", help="what to change in each row (default: nothing)")
    parser.add_argument(
        "--published-proposals", action="store_true", help="Fast R-CNN uses the proposal files that its configs name"
    )
    parser.add_argument("--iterations", type=at_least(2), help="of each training, instead of SOLVER.MAX_ITER")
    add_arguments(parser, seeds=1, output=Path("output/fpn_tables"))
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args = parse_arguments(argv)

    def compare(command: str) -> int:
        print(make_tables(args, command))
        print(f"Tables: {args.output}/fpn_tables.{{md,json}}")
        return 0

    return run("tools/fpn_tables.py", argv, compare)


if __name__ == "__main__":
    sys.exit(main())
