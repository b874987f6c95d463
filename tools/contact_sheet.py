#!/usr/bin/env python3
"""Draw what an evaluation found, got wrong and missed: python tools/contact_sheet.py output/quickstart"""

import argparse
import sys
from pathlib import Path

import matplotlib
import numpy as np
import torch
from detectron2.data import MetadataCatalog

from sparsercnn.data.images import read_image
from sparsercnn.errors import InputError
from sparsercnn.evaluation.results import ImageResult, best_f1_threshold, config_of_run, read_results
from sparsercnn.visualization.comparison import LEGEND, draw_comparison

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLUMNS = 4


def contact_sheet(output_dir: Path, images: int = 12, threshold: float | None = None) -> tuple[Path, str]:
    """Draw `images` pictures, spread over the first test set of the run, into `predictions.png` of `output_dir`.

    Args:
        output_dir: of a run that evaluated a data set with COCO metrics.
        images: how many.
        threshold: lowest score drawn; None for the one with the best F1 on this data set.

    Returns:
        The file, and what there is to see in one line: right, wrong and missed in the whole data set.

    Raises:
        InputError: the folder lacks the config or the predictions.
    """
    dataset = config_of_run(output_dir).DATASETS.TEST[0]
    results = read_results(dataset, output_dir / "inference" / dataset)
    if threshold is None:
        threshold = best_f1_threshold(results)
    names = MetadataCatalog.get(dataset).thing_classes
    chosen = [results[i] for i in np.linspace(0, len(results) - 1, min(images, len(results))).astype(int)]
    rows = -(-len(chosen) // COLUMNS)
    height = 4 * max(result.record["height"] / result.record["width"] for result in chosen)
    size = 4 * COLUMNS, height * rows + 0.5
    figure, grid = plt.subplots(rows, COLUMNS, figsize=size, squeeze=False, layout="constrained")
    for axes in grid.flat:
        axes.axis("off")
    for result, axes in zip(chosen, grid.flat, strict=False):
        picture = read_image(result.record["file_name"], "RGB")
        found = result.above(threshold)
        axes.imshow(draw_comparison(picture, found, result.objects, result.matches(threshold), names))
    figure.suptitle(f"{dataset}, scores over {threshold:.0%}    {LEGEND}")
    path = output_dir / "predictions.png"
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path, summary(results, threshold)


def summary(results: list[ImageResult], threshold: float) -> str:
    """One line that counts what is right, wrong and missed above a score."""
    objects = sum(len(result.objects) for result in results)
    right = wrong = twice = 0
    scores = []
    for result in results:
        matches = result.matches(threshold)
        right += int(matches.is_right.sum())
        wrong += int(matches.is_wrong.sum())
        twice += int(matches.is_duplicate.sum())
        scores.append(result.above(threshold).scores[matches.is_right])
    median = float(torch.cat(scores).median()) if right else 0.0
    return (
        f"{objects} objects, scores over {threshold:.2f}: {right} found (median score {median:.2f}), "
        f"{objects - right} missed, {wrong} wrong boxes, {twice} of them second boxes of an object found"
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output_dir", type=Path, help="OUTPUT_DIR of a run that evaluated")
    parser.add_argument("--images", type=int, default=12, help="how many images")
    parser.add_argument(
        "--confidence-threshold", type=float, help="lowest score drawn (default: that of the best F1 on this data)"
    )
    args = parser.parse_args(argv)
    if args.images < 1:
        parser.error("--images must be positive")
    try:
        path, line = contact_sheet(args.output_dir, args.images, args.confidence_threshold)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(line)
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
