#!/usr/bin/env python3
"""Understand what a detector finds and what it does not: python tools/analyze_results.py output/bccd

The folder is the OUTPUT_DIR of a training or of an evaluation. The report is one page, `analysis.html` in it: AP with
intervals by class and size, precision and recall, kinds of errors, confusion of classes, calibration of scores, AP
after each refinement stage, where learned proposals sit, which pyramid levels are read, and the worst images drawn.
Needs pip install 'sparsercnn[analysis]'.
"""

import argparse
import json
import re
import sys
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from sparsercnn.engine.checkpoints.files import read_tensors
from sparsercnn.engine.level_report import training_sizes
from sparsercnn.errors import InputError, check_choice
from sparsercnn.evaluation.analysis import Analysis, analyze
from sparsercnn.evaluation.results import ImageResult, config_of_run, read_results
from sparsercnn.files import write_whole
from sparsercnn.modeling.roi_routing import assign_levels
from sparsercnn.visualization import analysis_page as page
from sparsercnn.visualization.html_page import Section, html_page

PROPOSALS = "init_proposal_boxes.weight"


def analyze_run(output_dir: Path, dataset: str | None = None) -> tuple[Path, Analysis]:
    """Write `analysis.html` into the folder of a run.

    Args:
        output_dir: of a run that evaluated a data set with COCO metrics.
        dataset: which of DATASETS.TEST; None for the first.

    Returns:
        The file, and what is in it.

    Raises:
        InputError: the folder lacks the config or the detections, or see `analyze`.
    """
    cfg = config_of_run(output_dir)
    dataset = dataset or cfg.DATASETS.TEST[0]
    check_choice("--dataset", dataset, cfg.DATASETS.TEST)
    folder = output_dir / "inference" / dataset
    results = read_results(dataset, folder)
    names = list(MetadataCatalog.get(dataset).thing_classes)
    analysis = analyze(results, names)
    sections = [
        page.accuracy(analysis),
        page.curves(analysis, names),
        page.errors(analysis),
        page.confusion(analysis, names),
        page.calibration(analysis),
        *of_sparse_rcnn(cfg, output_dir, folder, results, analysis.threshold),
        page.worst_images(results, analysis.threshold, names),
    ]
    path = output_dir / "analysis.html"
    text = html_page(f"{dataset}, found by {output_dir}", sections)
    write_whole(path, lambda file: file.write(text.encode()))
    return path, analysis


def of_sparse_rcnn(
    cfg: CfgNode, output_dir: Path, folder: Path, results: list[ImageResult], threshold: float
) -> list[Section]:
    """Refinement stages, learned proposals and pyramid levels; nothing for other detectors."""
    if cfg.MODEL.META_ARCHITECTURE != "SparseRCNN":
        return []
    metrics = folder / "metrics.json"
    sections = [page.stages(json.loads(metrics.read_text()) if metrics.is_file() else {})]
    weights = output_dir / "model_final.pth"
    learned = read_tensors(str(weights))["model"].get(PROPOSALS) if weights.is_file() else None
    if learned is not None:
        sections.append(page.learned_proposals(learned))
    if cfg.MODEL.ROI_ROUTING.MODE == "level":
        sections.append(read_levels(cfg, results, threshold))
    return sections


def read_levels(cfg: CfgNode, results: list[ImageResult], threshold: float) -> Section:
    """Which level the objects read at the test size, and how many of each are found."""
    names = cfg.MODEL.ROI_HEADS.IN_FEATURES
    numbers = [int(re.sub(r"\D", "", name)) for name in names]
    routing = range(numbers[0], numbers[-1] + 1), cfg.MODEL.ROI_ROUTING.CANONICAL_LEVEL
    objects, found = ([0] * len(names) for _ in range(2))
    for result in results:
        sizes = training_sizes([result.record], [cfg.INPUT.MIN_SIZE_TEST], cfg.INPUT.MAX_SIZE_TEST)
        corners = torch.from_numpy(sizes).float()
        boxes = torch.cat([torch.zeros_like(corners), corners], dim=1)
        levels = assign_levels(boxes, *routing, cfg.MODEL.ROI_ROUTING.CANONICAL_BOX_SIZE) - numbers[0]
        is_found = result.matches(threshold).is_found
        for level, right in zip(levels.tolist(), is_found.tolist(), strict=True):
            objects[level] += 1
            found[level] += right
    return page.levels(names, objects, found)


def summary(analysis: Analysis) -> str:
    """The most important numbers as lines of text."""
    lines = [f"AP {analysis.by_area['all']}, AP50 {100 * analysis.metrics['AP50']:.1f} (95 % interval in brackets)"]
    lines += [f"    {name}: {interval}" for name, interval in analysis.by_class.items()]
    kind, (gain, count) = max(analysis.errors.items(), key=lambda item: item[1][0])
    lines.append(f"What costs most: {count} {kind} errors ({page.ERRORS[kind]}), {gain:.1f} AP50")
    lines.append(f"Best F1 over a score of {analysis.threshold:.2f}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output_dir", type=Path, help="OUTPUT_DIR of a run that evaluated")
    parser.add_argument("--dataset", help="which of DATASETS.TEST (default: the first)")
    args = parser.parse_args(argv)
    try:
        path, analysis = analyze_run(args.output_dir, args.dataset)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(summary(analysis))
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
