#!/usr/bin/env python3
"""Say what the data sets of a config hold, and what in them is likely wrong.

    python tools/check_dataset.py --config-file output/cells/config.yaml
    python tools/check_dataset.py --config-file output/cells/config.yaml --weights output/cells/run/model_final.pth

Prints a summary, and writes check.json and check.html, a page with plots and pictures that needs no other file, into
OUTPUT_DIR/check. Likely label errors, what a trained model confidently disagrees with, are looked for with --weights in
all data sets, and else in those that an evaluation in OUTPUT_DIR has left results of.

Exit status: 0 nothing is wrong, 1 something is, 2 the data sets cannot be read.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from tqdm import tqdm

from sparsercnn import load_config
from sparsercnn.data.checks import read_content
from sparsercnn.data.images import read_image
from sparsercnn.data.inspection import Inspection, find_copies, inspect_dataset
from sparsercnn.errors import InputError
from sparsercnn.evaluation.label_errors import LabelError, find_label_errors
from sparsercnn.evaluation.results import ImageResult, image_result, read_results
from sparsercnn.files import write_json, write_whole
from sparsercnn.predictor import Predictor
from tools.dataset_page import Checked, dataset_page, levels_read

SHOWN = 5


def check(cfg: CfgNode, weights: str | None) -> Checked:
    """Look at every data set of a config.

    Args:
        cfg: the config.
        weights: checkpoint to look for label errors with; None for the results of an evaluation in `OUTPUT_DIR`.

    Raises:
        InputError: a data set is not registered or its annotations are malformed, or the weights do not fit.
    """
    names = dict.fromkeys((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))
    if not names:
        raise InputError("DATASETS.TRAIN and DATASETS.TEST are empty: name a data set")
    for name in names:
        read_content(cfg, name, trained=name in cfg.DATASETS.TRAIN)
    inspections = [inspect_dataset(name, cfg.INPUT.MAX_PIXELS) for name in names]
    errors = {x.name: find_label_errors(results) for x in inspections if (results := _results(cfg, x, weights))}
    return Checked(cfg, inspections, list(find_copies(inspections)), errors)


def _results(cfg: CfgNode, inspection: Inspection, weights: str | None) -> list[ImageResult]:
    if weights is None:
        folder = Path(cfg.OUTPUT_DIR) / "inference" / inspection.name
        is_there = (folder / "coco_instances_results.json").is_file()
        return read_results(inspection.name, folder) if is_there else []
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = weights
    predictor = Predictor(cfg)
    readable = [inspection.records[i] for i in sorted(inspection.hashes)]
    pictures = ((record, read_image(record["file_name"], "RGB", cfg.INPUT.MAX_PIXELS)) for record in readable)
    progress = tqdm(pictures, desc=inspection.name, total=len(readable), unit="image")
    return [image_result(record, predictor(picture)) for record, picture in progress]


def findings(checked: Checked) -> list[str]:
    """What is likely wrong, a line each, the gravest first."""
    lines = []
    for x in checked.inspections:
        for kind, count in Counter(oddity.kind for oddity in x.oddities).most_common():
            examples = [f"{o.file}: {o.detail}" if o.detail else o.file for o in x.oddities if o.kind == kind]
            lines.append(f"{x.name}: {count} × {kind}; {'; '.join(examples[:SHOWN])}{'; …' * (count > SHOWN)}")
        if missing := [name for name in x.classes if not x.counts[name]]:
            lines.append(f"{x.name}: no example of {', '.join(missing)}")
    lines += [*_copies(checked), *_crowdedness(checked)]
    first, *others = checked.inspections
    for x in others:
        if x.classes != first.classes:
            lines.append(f"{first.name} and {x.name} have different classes: {first.classes} and {x.classes}")
    for name in first.classes:
        twins = [other for other in first.classes if other != name and other.lower() == name.lower()]
        if twins and name < twins[0]:
            lines.append(f"the classes {name} and {twins[0]} differ in upper and lower case only")
    return lines


def _copies(checked: Checked) -> list[str]:
    lines = []
    by_sets = Counter(tuple(sorted({a[0], b[0]})) for a, b in checked.copies)
    for names, count in sorted(by_sets.items()):
        a, b = next(pair for pair in checked.copies if tuple(sorted({pair[0][0], pair[1][0]})) == names)
        leak = f"LEAK: {names[0]} and {names[1]} share" if len(names) == 2 else f"{names[0]} has"
        lines.append(f"{leak} {count} pair(s) of images that are nearly the same, such as {a[1]} and {b[1]}")
    return lines


def _crowdedness(checked: Checked) -> list[str]:
    proposals = checked.proposals
    if proposals is None:
        return []
    lines = []
    for x in checked.inspections:
        over = sum(count > proposals for count in x.objects_per_image)
        if over:
            lines.append(
                f"{x.name}: {over} image(s) show more objects than MODEL.SparseRCNN.NUM_PROPOSALS {proposals}, up to "
                f"{max(x.objects_per_image)}; those over are never found"
            )
    return lines


def as_text(checked: Checked, found: list[str]) -> str:
    """The summary that is printed."""
    lines = []
    for x in checked.inspections:
        numbers = x.objects_per_image
        lines.append(
            f"{x.name}: {len(x.records)} images, {x.negatives} without objects; {sum(numbers)} objects, {x.crowds} "
            f"crowds; in the median image {np.median(numbers or 0):.0f} objects, in the fullest {max([0, *numbers])}"
        )
        lines.append("  " + ", ".join(f"{name} {x.counts[name]} (in {x.images_of[name]})" for name in x.classes))
        if levels := levels_read(checked.cfg, x):
            total = max(1, sum(levels.values()))
            shares = ", ".join(f"{level} {100 * count / total:.0f} %" for level, count in levels.items())
            lines.append(f"  levels that its boxes read at the training size: {shares}")
    lines += ["", *(f"! {line}" for line in found)] if found else ["", "Nothing is wrong that can be seen from here."]
    for name, errors in checked.label_errors.items():
        names = MetadataCatalog.get(name).thing_classes
        lines += ["", f"{name}: {len(errors)} labels that the model disagrees with; the most likely errors:"]
        lines += [f"  {describe_error(error, names)}" for error in errors[:SHOWN]]
    return "\n".join(lines)


def describe_error(error: LabelError, names: list[str]) -> str:
    """A label error in a line."""
    says = {
        "overlooked": f"{names[error.found or 0]} without a label",
        "other class": f"labeled {names[error.label or 0]}, looks like {names[error.found or 0]}",
        "box off": f"the box of this {names[error.label or 0]} does not fit",
        "nothing there": f"labeled {names[error.label or 0]}, looks like nothing",
    }[error.kind]
    place = ", ".join(f"{value:.0f}" for value in error.box.tolist())
    return f"{error.likelihood:.2f}  {error.result.record['file_name']}  {says}  at {place}"


def as_json(checked: Checked, found: list[str]) -> dict:
    """The same as plain values, complete."""
    return {
        "findings": found,
        "datasets": {
            x.name: {
                "images": len(x.records),
                "images_without_objects": x.negatives,
                "crowds": x.crowds,
                "objects": {name: x.counts[name] for name in x.classes},
                "images_with": {name: x.images_of[name] for name in x.classes},
                "objects_per_image": x.objects_per_image,
                "levels": levels_read(checked.cfg, x),
                "oddities": [vars(oddity) for oddity in x.oddities],
                "label_errors": [
                    {
                        "kind": error.kind,
                        "likelihood": round(error.likelihood, 4),
                        "file": error.result.record["file_name"],
                        "box_xyxy": [round(value, 2) for value in error.box.tolist()],
                        "label": None if error.label is None else x.classes[error.label],
                        "found": None if error.found is None else x.classes[error.found],
                    }
                    for error in checked.label_errors.get(x.name, ())
                ],
            }
            for x in checked.inspections
        },
        "near_duplicates": [[list(place) for place in pair] for pair in checked.copies],
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help="names the data sets, the input size and the proposals")
    parser.add_argument("--weights", help="checkpoint to look for label errors with")
    parser.add_argument("--output", type=Path, help="folder for check.json and check.html (default: OUTPUT_DIR/check)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE …", help="changes of the config")
    args = parser.parse_args(argv)
    try:
        cfg = load_config(args.config_file, args.opts)
        checked = check(cfg, args.weights)
        found = findings(checked)
        folder = args.output or Path(cfg.OUTPUT_DIR) / "check"
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "check.json", as_json(checked, found))
        page = dataset_page(checked, found, describe_error)
        write_whole(folder / "check.html", lambda file: file.write(page.encode()))
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(as_text(checked, found))
    print(f"\n{folder / 'check.html'}\n{folder / 'check.json'}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
