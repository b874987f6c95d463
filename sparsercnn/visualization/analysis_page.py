"""Figures and sections of the page that tools/analyze_results.py writes."""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from ..data.images import read_image
from ..evaluation.analysis import ERRORS, Analysis
from ..evaluation.results import ImageResult
from .comparison import LEGEND, draw_comparison
from .html_page import Picture, Section, Table, png_of

# Rows of `Analysis.precision` that are drawn: IoU 0.5, 0.75, 0.9.
CURVES = {0.5: 0, 0.75: 5, 0.9: 8}
WORST_IMAGES = 8
NOTHING = "(nothing)"


def accuracy(analysis: Analysis) -> Section:
    """AP with intervals, over all classes by size of objects and of each class."""
    shown = {"AP": "AP", "AP50": "AP50", "AP75": "AP75", "AR100": "AR (100 detections)"}
    numbers = [(text, f"{100 * analysis.metrics[name]:.1f}") for name, text in shown.items()]
    return Section(
        "Accuracy",
        [
            Table(["COCO", "%"], numbers),
            "AP, and in brackets the interval that covers it with a chance of 95 % if other images of the same kind "
            "are drawn. Below are those by size of objects: small ones are under 32² pixels, large ones over 96².",
            Table(["objects", "AP"], list(analysis.by_area.items())),
            Table(["class", "AP"], list(analysis.by_class.items())),
        ],
    )


def curves(analysis: Analysis, class_names: Sequence[str]) -> Section:
    """Precision over recall of each class at three IoU thresholds."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    recalls = np.linspace(0, 1, analysis.precision.shape[1])
    for axes, (iou, row) in zip(figure.subplots(1, len(CURVES)), CURVES.items(), strict=True):
        for k, name in enumerate(class_names):
            values = analysis.precision[row, :, k]
            if (values >= 0).any():
                axes.plot(recalls, values, label=name)
        axes.set(title=f"IoU {iou}", xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
        axes.grid(alpha=0.3)
        if len(class_names) <= 10:
            axes.legend(fontsize=8)
    return Section("Precision and recall", [Picture(png_of(figure))])


def errors(analysis: Analysis) -> Section:
    """The kinds of errors of TIDE, and what AP50 would be without each."""
    rows = [(kind, ERRORS[kind], count, f"{gain:.1f}") for kind, (gain, count) in analysis.errors.items()]
    return Section(
        "Errors",
        [
            "Kinds of errors as in TIDE (Bolya et al., ECCV 2020): how many detections of any score have it, and how "
            "much AP50 there would be more without this kind.",
            Table(["kind", "what it is", "count", "AP50 gained"], rows),
        ],
    )


def confusion(analysis: Analysis, class_names: Sequence[str]) -> Section:
    """Which class objects are taken for, at the score with the best F1."""
    names = [*class_names, NOTHING]
    size = max(3.5, 0.45 * len(names))
    figure = Figure(figsize=(size + 1.5, size), layout="constrained")
    axes = figure.subplots()
    shares = analysis.confusion / analysis.confusion.sum(1, keepdims=True).clip(min=1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="detected as", ylabel="object")
    if len(names) <= 25:
        for (i, j), count in np.ndenumerate(analysis.confusion):
            axes.text(j, i, str(count), ha="center", va="center", color="white" if shares[i, j] > 0.5 else "black")
    text = f"Detections that score over {analysis.threshold:.2f}, where F1 is best."
    return Section("Confusion", [text, Picture(png_of(figure))])


def calibration(analysis: Analysis) -> Section:
    """How often detections of a score are right."""
    filled = [row for row in analysis.calibration if row[2]]
    figure = Figure(figsize=(4, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="gray", linestyle=":")
    axes.plot([row[0] for row in filled], [row[1] for row in filled], marker="o")
    axes.set(xlabel="score", ylabel="share of right detections (IoU 0.5)", xlim=(0, 1), ylim=(0, 1))
    axes.grid(alpha=0.3)
    text = f"Scores differ from how often they are right by {analysis.calibration_error:.2f} on average."
    return Section("Calibration", [text, Picture(png_of(figure))])


def worst_images(results: Sequence[ImageResult], threshold: float, class_names: Sequence[str]) -> Section:
    """The images with most wrong and missed objects at a score, drawn."""
    counted = []
    for result in results:
        matches = result.matches(threshold)
        counted.append((int(matches.is_wrong.sum()), int((~matches.is_found).sum())))
    order = sorted(range(len(results)), key=lambda i: -sum(counted[i]))[:WORST_IMAGES]
    pictures = []
    for i in order:
        wrong, missed = counted[i]
        result, name = results[i], results[i].record["file_name"]
        drawn = draw_comparison(
            read_image(name, "RGB"),
            result.above(threshold),
            result.objects,
            result.matches(threshold),
            list(class_names),
        )
        pictures.append(Picture(_png(drawn), f"{name}: {wrong} wrong, {missed} missed"))
    return Section("Worst images", [LEGEND, *pictures])


def stages(metrics: dict[str, dict[str, float]]) -> Section:
    """AP after each refinement stage, of an evaluation's metrics; {"bbox_stage2": {"AP": …}} and so on."""
    rows = [(f"stage {key.removeprefix('bbox_stage')}", values) for key, values in metrics.items() if "_stage" in key]
    if not rows:
        return Section("Refinement stages", ["Evaluate with TEST.STAGES '[1, 2]' to see the AP after each stage here."])
    rows.append(("all", metrics["bbox"]))
    table = Table(
        ["after", "AP", "AP50"], [(name, *(f"{v[key] or 0:.1f}" for key in ("AP", "AP50"))) for name, v in rows]
    )
    return Section("Refinement stages", [table])


def learned_proposals(boxes: Tensor) -> Section:
    """Where learned proposals, (N, 4) cxcywh in [0, 1], sit on a picture, and how large they are."""
    figure = Figure(figsize=(4.5, 4), layout="constrained")
    axes = figure.subplots()
    x, y, width, height = boxes.T.numpy()
    points = axes.scatter(x, y, c=np.sqrt(np.abs(width * height)), cmap="viridis", s=15)
    axes.set(xlim=(0, 1), ylim=(1, 0), xlabel="center, left to right", ylabel="center, top to bottom")
    figure.colorbar(points, label="side, as a share of the picture's")
    return Section("Learned proposals", [Picture(png_of(figure))])


def levels(names: Sequence[str], objects: Sequence[int], found: Sequence[int]) -> Section:
    """Which pyramid level objects read, lowest first, and how many of them were found over the threshold."""
    rows = [
        (name, count, f"{100 * right / count:.0f} %" if count else "")
        for name, count, right in zip(names, objects, found, strict=True)
    ]
    return Section("Pyramid levels", [Table(["level", "objects", "found"], rows)])


def _png(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="png")
    return file.getvalue()
