"""The page of `tools/check_dataset.py`: plots of the data sets, and pictures of what is likely wrong in them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import BoxMode
from matplotlib.figure import Figure

from sparsercnn.data.images import read_image
from sparsercnn.data.inspection import Inspection
from sparsercnn.engine.level_report import training_sizes
from sparsercnn.errors import InputError
from sparsercnn.evaluation.label_errors import LabelError
from sparsercnn.modeling.roi_routing import assign_levels
from sparsercnn.visualization.canvas import class_color, draw_boxes, enlarge
from sparsercnn.visualization.html_page import Picture, Section, Table, html_page, png_of

SAMPLES, PAIRS_SHOWN, ODDITIES_SHOWN, ERRORS_SHOWN = 6, 6, 200, 24
MARKED = np.array([1.0, 0.1, 0.1])
# Pixels that are marked on the axis of box sizes.
SIDES = [4, 8, 16, 32, 64, 128, 256, 512, 1024]


@dataclass
class Checked:
    """What was looked at and found.

    Attributes:
        cfg: names the data sets, the input size and the number of proposals.
        inspections: of each data set.
        copies: pairs of images that are nearly the same, (data set, file) each.
        label_errors: of the data sets that a model was run on.
    """

    cfg: CfgNode
    inspections: list[Inspection]
    copies: list[tuple[tuple[str, str], tuple[str, str]]]
    label_errors: dict[str, list[LabelError]]

    @property
    def proposals(self) -> int | None:
        """The number of proposals, None of detectors that have none of their own."""
        is_sparse = self.cfg.MODEL.META_ARCHITECTURE == "SparseRCNN"
        return self.cfg.MODEL.SparseRCNN.NUM_PROPOSALS if is_sparse else None


def levels_read(cfg: CfgNode, inspection: Inspection) -> dict[str, int]:
    """How many boxes read each level of the pyramid in training; empty where boxes are not routed to levels."""
    names = list(cfg.MODEL.ROI_HEADS.IN_FEATURES)
    routed = cfg.MODEL.META_ARCHITECTURE == "SparseRCNN" and cfg.MODEL.ROI_ROUTING.MODE == "level"
    if not routed or not all(name[:1] == "p" and name[1:].isdigit() for name in names):
        return {}
    sizes = torch.from_numpy(_sizes(cfg, inspection)).float()
    levels = range(int(names[0][1:]), int(names[0][1:]) + len(names))
    routing = cfg.MODEL.ROI_ROUTING
    boxes = torch.cat([torch.zeros_like(sizes), sizes], dim=1)
    read = assign_levels(boxes, levels, routing.CANONICAL_LEVEL, routing.CANONICAL_BOX_SIZE) - levels[0]
    return dict(zip(names, torch.bincount(read, minlength=len(names)).tolist(), strict=True))


def _sizes(cfg: CfgNode, inspection: Inspection) -> np.ndarray:
    return training_sizes(inspection.records, cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN)


def dataset_page(checked: Checked, found: Sequence[str], describe: Callable[[LabelError, list[str]], str]) -> str:
    """The page as HTML.

    Args:
        checked: what to show.
        found: what is likely wrong, a line each.
        describe: says a label error in a line, by the names of the classes.
    """
    sections = [
        Section("Findings", list(found) or ["Nothing is wrong that can be seen from here."]),
        Section("Classes", [_class_table(checked), _class_plot(checked)]),
        Section("Sizes and crowdedness", [_size_plot(checked), _crowd_plot(checked), *_level_table(checked)]),
        Section("Samples", [_sample(x, i) for x in checked.inspections for i in _spread(sorted(x.hashes), SAMPLES)]),
    ]
    oddities = [(x.name, o.kind, o.file, o.detail) for x in checked.inspections for o in x.oddities]
    if oddities:
        sections.append(Section("Oddities", [Table(("data set", "what", "file", "detail"), oddities[:ODDITIES_SHOWN])]))
    if checked.copies:
        rows = [(*a, *b) for a, b in checked.copies]
        pictures = [_pair(*pair) for pair in checked.copies[:PAIRS_SHOWN]]
        table = Table(("data set", "file", "data set", "file"), rows[:ODDITIES_SHOWN])
        sections.append(Section("Nearly the same", [*pictures, table]))
    for x in checked.inspections:
        if errors := checked.label_errors.get(x.name):
            drawn = [_drawn_error(error, x.classes, describe) for error in errors[:ERRORS_SHOWN]]
            about = f"{len(errors)} labels that the model disagrees with, the most likely errors first, in red."
            sections.append(Section(f"Label errors in {x.name}", [about, *drawn]))
    return html_page("Data sets: " + ", ".join(x.name for x in checked.inspections), sections)


def _class_table(checked: Checked) -> Table:
    names = list(dict.fromkeys(name for x in checked.inspections for name in x.classes))
    rows: list[list[object]] = [
        [name, *(f"{x.counts[name]} in {x.images_of[name]}" for x in checked.inspections)] for name in names
    ]
    rows.append(["images", *(len(x.records) for x in checked.inspections)])
    rows.append(["images without objects", *(x.negatives for x in checked.inspections)])
    rows.append(["crowds", *(x.crowds for x in checked.inspections)])
    return Table(["objects in images", *(x.name for x in checked.inspections)], rows)


def _class_plot(checked: Checked) -> Picture:
    names = list(dict.fromkeys(name for x in checked.inspections for name in x.classes))
    figure = Figure(figsize=(8, 1 + 0.3 * len(names)), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(checked.inspections)
    for k, x in enumerate(checked.inspections):
        axes.barh(np.arange(len(names)) + k * height, [x.counts[n] for n in names], height, label=x.name)
    axes.set(yticks=np.arange(len(names)) + 0.4 - height / 2, yticklabels=names, xlabel="objects")
    axes.invert_yaxis()
    axes.legend()
    return Picture(png_of(figure), "Objects of each class")


def _size_plot(checked: Checked) -> Picture:
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    for x in checked.inspections:
        sides = np.sqrt(np.maximum(_sizes(checked.cfg, x).prod(axis=1), 1e-3))
        if len(sides):
            axes.hist(sides, np.geomspace(4, 1024, 33).tolist(), histtype="step", density=True, label=x.name)
    axes.set(
        xscale="log", xlabel="√(width · height) in pixels of the network's input", ylabel="share of boxes", yticks=()
    )
    axes.set_xticks(SIDES, [str(side) for side in SIDES])
    if checked.cfg.MODEL.META_ARCHITECTURE == "SparseRCNN":
        routing = checked.cfg.MODEL.ROI_ROUTING
        names = checked.cfg.MODEL.ROI_HEADS.IN_FEATURES
        for name in names[1:]:
            border = routing.CANONICAL_BOX_SIZE * 2.0 ** (int(name[1:]) - routing.CANONICAL_LEVEL)
            axes.axvline(border, color="gray", linestyle=":", linewidth=1)
            axes.annotate(f"{name} →", (border, 0.97), xycoords=("data", "axes fraction"), va="top", fontsize=8)
    axes.legend(fontsize=8)
    return Picture(png_of(figure), "Sizes of boxes at the training size; dotted: from where on a level is read")


def _crowd_plot(checked: Checked) -> Picture:
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    most = max(max(x.objects_per_image, default=0) for x in checked.inspections)
    bins = np.arange(most + 2) - 0.5 if most < 60 else np.linspace(0, most, 61)
    for x in checked.inspections:
        axes.hist(x.objects_per_image, bins.tolist(), histtype="step", label=x.name)
    if checked.proposals is not None:
        axes.axvline(checked.proposals, color="crimson", linestyle="--", label=f"{checked.proposals} proposals")
    axes.set(xlabel="objects in an image", ylabel="images")
    axes.legend(fontsize=8)
    return Picture(png_of(figure), "Objects in an image")


def _level_table(checked: Checked) -> list[Table]:
    levels = {x.name: levels_read(checked.cfg, x) for x in checked.inspections}
    if not all(levels.values()):
        return []
    names = list(next(iter(levels.values())))
    return [
        Table(["boxes that read", *levels], [[name, *(counts[name] for counts in levels.values())] for name in names])
    ]


def _spread(places: Sequence[int], count: int) -> list[int]:
    if not places:
        return []
    return [places[i] for i in np.unique(np.linspace(0, len(places) - 1, count).astype(int)).tolist()]


def _sample(inspection: Inspection, place: int) -> Picture:
    record = inspection.records[place]
    annotations = record.get("annotations", [])
    boxes = [BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
    labels = [inspection.classes[a["category_id"]] for a in annotations]
    colors = [class_color(a["category_id"]) for a in annotations]
    caption = f"{inspection.name}: {record['file_name'].rpartition('/')[2]}"
    return _drawn(record["file_name"], np.array(boxes, float).reshape(-1, 4), labels, colors, caption)


def _drawn(file: str, boxes: np.ndarray, labels: list[str], colors: list[np.ndarray], caption: str) -> Picture:
    picture, factor = enlarge(read_image(file, "RGB"))
    drawn = draw_boxes(picture, factor * boxes, labels, colors)
    return Picture(_png([drawn]), caption)


def _png(pictures: Sequence[np.ndarray]) -> bytes:
    figure = Figure(figsize=(4.6 * len(pictures), 4.6), layout="constrained")
    for axes, picture in zip(np.atleast_1d(figure.subplots(1, len(pictures))), pictures, strict=True):
        axes.imshow(picture)
        axes.axis("off")
    return png_of(figure)


def _pair(first: tuple[str, str], second: tuple[str, str]) -> Picture:
    caption = f"{first[0]}: {first[1]} | {second[0]}: {second[1]}"
    try:
        return Picture(_png([read_image(file, "RGB") for _, file in (first, second)]), caption)
    except InputError as error:
        return Picture(_png([np.zeros((8, 8, 3), np.uint8)]), str(error))


def _drawn_error(error: LabelError, names: list[str], describe: Callable[[LabelError, list[str]], str]) -> Picture:
    objects = error.result.objects
    boxes = np.concatenate([objects.gt_boxes.tensor.numpy(), error.box[None].numpy()])
    labels = [names[c] for c in objects.gt_classes.tolist()]
    says = names[error.found] if error.found is not None else "nothing?"
    colors = [class_color(c) for c in objects.gt_classes.tolist()]
    text = describe(error, names)
    return _drawn(error.result.record["file_name"], boxes, [*labels, says], [*colors, MARKED], text)
