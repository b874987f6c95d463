#!/usr/bin/env python3
"""From a folder of labeled pictures to a config to train with.

    python tools/prepare_dataset.py ~/cells --output output/cells
    python tools/prepare_dataset.py ~/cells/data.yaml --output output/cells --val 0.1 --seed 3

SOURCE is a folder with annotations as COCO JSON, Pascal VOC, YOLO, CVAT XML, LabelMe JSON or CSV, or the annotation
file. OUTPUT gets config.yaml, train.json, val.json and, where SOURCE has such a split, test.json. The pictures stay
where they are, and nothing in SOURCE is changed.
"""

import argparse
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from sparsercnn import load_config
from sparsercnn.config_file import find_config
from sparsercnn.data.formats import read_labeled
from sparsercnn.data.preparation import Prepared, prepare, write_splits
from sparsercnn.engine.recipe import Decision, Machine, decide
from sparsercnn.errors import InputError
from sparsercnn.files import write_whole

BASE = "configs/Base-Lite0.yaml"


def prepare_dataset(args: argparse.Namespace) -> str:
    """Write the files, and return what was decided and what to do next, as text.

    Raises:
        InputError: SOURCE cannot be read, or OUTPUT cannot be written to or lies in SOURCE.
    """
    folder = _output_folder(args.source, args.output)
    prepared = prepare(read_labeled(args.source), args.val, args.seed)
    # On the CPU: reading a config must not ask for a GPU.
    base = load_config(args.base, ["MODEL.DEVICE", "cpu", *(["MODEL.WEIGHTS", args.weights] if args.weights else [])])
    decisions = decide(base, prepared.classes, prepared.splits["train"], Machine.here(), args.drop_empty)
    files = write_splits(prepared, folder)
    names = {split: _name(folder, split, file) for split, file in files.items()}
    decisions += [
        Decision(
            "DATASETS.COCO_JSON",
            [[names[split], str(file), str(prepared.root)] for split, file in files.items()],
            "name, annotations, folder of the pictures",
        ),
        Decision("DATASETS.TRAIN", (names["train"],), ""),
        Decision(
            "DATASETS.TEST", (names["val"],), "" if "test" not in names else f"{names['test']} is kept for the end"
        ),
        Decision("OUTPUT_DIR", str(folder / "run"), ""),
    ]
    if args.weights:
        decisions.append(Decision("MODEL.WEIGHTS", str(Path(args.weights).resolve()), "what training starts from"))
    text = config_text(args, decisions)
    write_whole(folder / "config.yaml", lambda file: file.write(text.encode()))
    return "\n".join([*describe(prepared, decisions), *next_commands(folder, prepared, names)])


def config_text(args: argparse.Namespace, decisions: list[Decision]) -> str:
    """The config as YAML that needs no other file, with the reasons for what was decided above it."""
    content = CfgNode.load_yaml_with_base(find_config(args.base))
    for decision in decisions:
        _set(content, decision.key, decision.value)
    lines = [f"# Made by tools/prepare_dataset.py of {args.source}, on {args.base}. Change what you like."]
    lines += [f"# {d.key}: {d.why}" for d in decisions if d.why]
    return (
        "\n".join(lines)
        + "\n"
        + yaml.safe_dump(_plain(content), sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)
    )


def _set(content: dict[str, Any], key: str, value: Any) -> None:
    *parents, name = key.split(".")
    for parent in parents:
        content = content.setdefault(parent, {})
    content[name] = value


def _plain(value: Any) -> Any:
    """Values that YAML has: yacs reads lists where it expects tuples."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value


def _output_folder(source: Path, output: Path) -> Path:
    if not source.exists():
        raise InputError(f"there is no {source}")
    folder = output.absolute()
    inside = source if source.is_dir() else source.parent
    if folder.resolve().is_relative_to(inside.resolve()):
        raise InputError(
            f"--output {output} lies in {inside}, in which nothing is to be changed; choose another folder"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output {output} cannot be made: {error.strerror}") from error
    return folder


def _name(folder: Path, split: str, file: Path) -> str:
    """The registered name of a split: the folder's, or if another data set has that, one beside it."""
    name = f"{folder.name}_{split}"
    taken = name in DatasetCatalog.list() and MetadataCatalog.get(name).get("json_file") != str(file)
    return f"{folder.name}_own_{split}" if taken else name


def describe(prepared: Prepared, decisions: list[Decision]) -> list[str]:
    """What was found and decided, line by line."""
    objects = {split: sum(len(image.boxes) for image in images) for split, images in prepared.splits.items()}
    lines = [f"{prepared.format}, {len(prepared.classes)} classes: {', '.join(prepared.classes)}"]
    for split, images in prepared.splits.items():
        empty = prepared.negatives[split]
        lines.append(f"{split}: {len(images)} pictures, {objects[split]} objects, {empty} pictures without objects")
    lines += [f"note: {remark}" for remark in prepared.remarks]
    lines += ["", "Decided:"]
    shown = [d for d in decisions if d.why]
    width = max(len(f"{d.key} {d.value}") for d in shown if not d.key.startswith("DATASETS"))
    return lines + [f"  {f'{d.key} {d.value}':{width}}  {d.why}" for d in shown if not d.key.startswith("DATASETS")]


def next_commands(folder: Path, prepared: Prepared, names: dict[str, str]) -> list[str]:
    """The commands that train, measure and look, line by line."""
    config = shlex.quote(str(folder / "config.yaml"))
    run, root = shlex.quote(str(folder / "run")), shlex.quote(str(prepared.root))
    drawn, weights = shlex.quote(str(folder / "drawn")), f"MODEL.WEIGHTS {run}/model_final.pth"
    lines = ["", f"Written: {folder}/config.yaml, " + ", ".join(f"{split}.json" for split in names), "", "Next:"]
    lines += [
        f"  python tools/check_dataset.py --config-file {config}",
        f"  python tools/doctor.py --config-file {config}",
        f"  python train_net.py --config-file {config}",
        f"  python train_net.py --config-file {config} --eval-only {weights}",
    ]
    if "test" in names:
        test = f"('{names['test']}',)"
        test = f'"{test}"' if re.fullmatch(r"[\w.-]+", names["test"]) else shlex.quote(test)
        lines.append(f"  python train_net.py --config-file {config} --eval-only {weights} DATASETS.TEST {test}")
    return [
        *lines,
        f"  python tools/analyze_results.py {run}",
        f"  python demo.py --config-file {config} --input {root} --output {drawn} --opts {weights}",
    ]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="SOURCE", help="folder or annotation file of a data set")
    parser.add_argument("--output", type=Path, required=True, help="folder for the config and the annotations")
    parser.add_argument("--val", type=float, default=0.2, help="share of the pictures for validation (default: 0.2)")
    parser.add_argument("--seed", type=int, default=0, help="of the split, where SOURCE has none (default: 0)")
    parser.add_argument("--drop-empty", action="store_true", help="do not train on pictures without objects")
    parser.add_argument("--base", default=BASE, help="config to build upon (default: %(default)s)")
    parser.add_argument("--weights", help="checkpoint to start from, of the model that --base describes")
    args = parser.parse_args(argv)
    if not 0 < args.val < 1 or args.seed < 0:
        parser.error("--val must be between 0 and 1, and --seed not negative")
    try:
        print(prepare_dataset(args))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
