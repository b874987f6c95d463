"""What the data sets of a config have to do with it: class ids, boxes in another format, crowds, small objects."""

import os
from collections.abc import Iterator, Sequence

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from ..architectures import num_classes, num_classes_key
from ..data.checks import check_datasets, read_content
from ..data.image_files import some
from ..engine.level_report import training_sizes
from ..errors import InputError
from .finding import Finding

# Data sets that are registered only where they are found.
OPTIONAL = ("coco128_", "bccd_", "crowdhuman_")
# Boxes that are looked at, and the share of them that must look wrong.
BOXES = 2000
SUSPICIOUS = 0.05
# Pixels by which a box may overhang its picture: formats round and count pixels in different ways.
OVERHANG = 1.5
# A median object of fewer pixels, at the network's input, is two cells of the finest usual level.
SMALLEST_OBJECT = 8
# Passes over the data.
FEWEST_EPOCHS = 2


def data_findings(cfg: CfgNode, absent: list[str]) -> list[Finding]:
    """All that is wrong with the data sets, or that does not fit the config.

    Args:
        cfg: the config.
        absent: gets the names of data sets that are not on this machine and so cannot be looked at.
    """
    findings: list[Finding] = []
    records: dict[str, list[dict]] = {}
    for name in dict.fromkeys((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)):
        if not _is_here(name):
            absent.append(name)
            continue
        try:
            read_content(cfg, name, name in cfg.DATASETS.TRAIN)
            records[name] = DatasetCatalog.get(name)
        except InputError as error:
            findings.append(Finding("annotations", str(error), "the entry that the line names"))
    findings += _different_classes(list(records))
    for name, found in records.items():
        findings += [*_classes(cfg, name, found), *_boxes(name, found)]
    train = [record for name in cfg.DATASETS.TRAIN for record in records.get(name, ())]
    if train and not findings:
        findings += [*_fit(cfg, train), *_length(cfg, train)]
    if not findings and not absent:
        findings += _remaining(cfg)
    return findings


def _is_here(name: str) -> bool:
    """Whether a data set can be looked at, or its name is none.

    detectron2 registers the data sets that it knows whether they are there or not, this project only where they are.
    """
    if name not in DatasetCatalog.list():
        return not name.startswith(OPTIONAL)
    metadata = MetadataCatalog.get(name)
    place = metadata.get("json_file") or metadata.get("dirname")
    return place is None or os.path.exists(place)


def _classes(cfg: CfgNode, name: str, records: Sequence[dict]) -> Iterator[Finding]:
    expected, key = num_classes(cfg), num_classes_key(cfg)
    names = MetadataCatalog.get(name).get("thing_classes", [])
    if expected is None:
        return
    if names and len(names) != expected:
        problem = f"{name} has {len(names)} classes ({some(names)}), the model {expected}"
        yield Finding("number of classes", problem, f"{key} {len(names)}")
    ids = {annotation["category_id"] for record in records for annotation in record.get("annotations", ())}
    count = len(names) or expected
    if ids and not (0 <= min(ids) and max(ids) < count):
        yield Finding(
            "class ids",
            f"{name} has category_id {min(ids)} to {max(ids)}; of {count} classes they must be 0 to {count - 1}",
            "category_id in the function that registers the data set: subtract 1, or map ids to 0, 1, 2, …",
        )


def _different_classes(names: Sequence[str]) -> Iterator[Finding]:
    classes = {name: list(MetadataCatalog.get(name).get("thing_classes", [])) for name in names}
    for name in names[1:]:
        first = classes[names[0]]
        if first and classes[name] and classes[name] != first and len(classes[name]) == len(first):
            problem = f"{names[0]} and {name} number the classes differently: {some(first)}; {some(classes[name])}"
            yield Finding("class ids", problem, f"the categories of {name}, to those of {names[0]}")


def _boxes(name: str, records: Sequence[dict]) -> Iterator[Finding]:
    rows = [
        (*annotation["bbox"], record["width"], record["height"], annotation["bbox_mode"])
        for record in records
        if "width" in record
        for annotation in record.get("annotations", ())
        if len(annotation["bbox"]) == 4
    ][:BOXES]
    if not rows:
        return
    table = np.array([row[:6] for row in rows], float)
    is_sized = np.array([row[6] == BoxMode.XYWH_ABS for row in rows])
    boxes, picture = table[:, :4], table[:, 4:]
    if boxes.min() >= -0.1 and boxes.max() <= 1.1 and picture.min() > 2:
        problem = f"the boxes of {name} are at most {boxes.max():.2f}: parts of the picture's size, not pixels"
        yield Finding(
            "box format", problem, "bbox: multiply x and width by the picture's width, y and height by its height"
        )
        return
    start, second = boxes[:, :2], boxes[:, 2:]
    if is_sized.all():
        overhangs = ((start + second) > picture + OVERHANG).any(1)
        as_corners = ((second > start) & (second <= picture + OVERHANG)).all(1)
        as_centers = ((start - second / 2 >= -OVERHANG) & (start + second / 2 <= picture + OVERHANG)).all(1)
        if overhangs.mean() > SUSPICIOUS and as_centers.mean() > 0.99:
            kind, change = "center x, center y, width, height", "[cx - w / 2, cy - h / 2, w, h]"
        elif overhangs.mean() > SUSPICIOUS and as_corners.mean() > 0.99:
            kind, change = "x0, y0, x1, y1", "[x0, y0, x1 - x0, y1 - y0], or bbox_mode XYXY_ABS"
        else:
            return
        problem = f"{overhangs.mean():.0%} of the boxes of {name} overhang their picture; they look like {kind}"
        yield Finding("box format", problem, f"bbox to {change}")
    elif not is_sized.any() and (second < start).any(1).mean() > SUSPICIOUS:
        share = (second < start).any(1).mean()
        problem = f"{share:.0%} of the boxes of {name} end before they begin; they look like x, y, width, height"
        yield Finding("box format", problem, "bbox_mode to XYWH_ABS")


def _fit(cfg: CfgNode, train: Sequence[dict]) -> Iterator[Finding]:
    counts = [sum(not a.get("iscrowd") for a in record.get("annotations", ())) for record in train]
    if cfg.MODEL.META_ARCHITECTURE == "SparseRCNN" and max(counts) > cfg.MODEL.SparseRCNN.NUM_PROPOSALS:
        over = sum(count > cfg.MODEL.SparseRCNN.NUM_PROPOSALS for count in counts)
        proposals = 10 * -(-3 * max(counts) // 20)
        yield Finding(
            "number of proposals",
            f"{over} training picture(s) show more objects than there are proposals, up to {max(counts)}",
            f"MODEL.SparseRCNN.NUM_PROPOSALS {proposals}",
        )
    sides = np.sqrt(np.maximum(training_sizes(train, cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN).prod(1), 0))
    if len(sides) and np.median(sides) < SMALLEST_OBJECT:
        factor = 3 * SMALLEST_OBJECT / max(float(np.median(sides)), 1e-3)
        size = 32 * round(max(cfg.INPUT.MIN_SIZE_TRAIN) * factor / 32)
        problem = f"half of the objects are smaller than {np.median(sides):.1f} pixels at the network's input"
        yield Finding(
            "input size", problem, f"INPUT.MIN_SIZE_TRAIN ({size},) and MIN_SIZE_TEST {size}, or train on tiles"
        )


def _length(cfg: CfgNode, train: Sequence[dict]) -> Iterator[Finding]:
    images = cfg.SOLVER.IMS_PER_BATCH * cfg.SOLVER.ACCUMULATE
    epochs = images * cfg.SOLVER.MAX_ITER / len(train)
    if epochs < FEWEST_EPOCHS:
        iterations = -(-12 * len(train) // images)
        problem = (
            f"{cfg.SOLVER.MAX_ITER} iterations of {images} images see each of {len(train)} pictures {epochs:.1f} times"
        )
        yield Finding("schedule", problem, f"SOLVER.MAX_ITER {iterations}")


def _remaining(cfg: CfgNode) -> Iterator[Finding]:
    """What a training itself would refuse: unreadable pictures, no objects, classes of another order."""
    try:
        check_datasets(cfg)
    except InputError as error:
        yield Finding("data sets", str(error), "what the line names")
