"""What training says once before it starts: which levels of the pyramid are read, and what will learn nothing.

Where each box reads one level, pictures that are too small for the pyramid train a part of it only, without a word.
"""

import logging
import math
from collections.abc import Iterator, Sequence, Set
from typing import cast

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import Backbone
from detectron2.structures import BoxMode
from detectron2.utils import comm
from torch import Tensor, nn
from torchvision.ops import box_convert

from ..modeling.roi_routing import LevelRouting

# More boxes do not change the shares that are printed, and take seconds.
MAX_BOXES = 100_000
# Cells of the highest level along the sides of a picture on which to see what a gradient reaches.
CELLS = 2

logger = logging.getLogger(__name__)


def report_levels(cfg: CfgNode, model: nn.Module, dataset: Sequence[dict]) -> None:
    """Log how many annotated boxes read each level in training, and warn of what gets no gradient.

    The main process does so, and says nothing of detectors whose boxes are not routed to levels.

    Args:
        cfg: the config, of which `INPUT` tells the size of pictures in training.
        model: the detector, or what distributes it.
        dataset: the training images in detectron2's format.
    """
    if not comm.is_main_process():
        return
    line, problems = examine_levels(cfg, getattr(model, "module", model), dataset)
    if line:
        logger.info(line)
    if problems:
        logger.warning(
            f"A part of the pyramid will not learn: {'; '.join(problems)}. Train on larger pictures "
            "(INPUT.MIN_SIZE_TRAIN, MAX_SIZE_TRAIN), or use fewer levels (MODEL.ROI_HEADS.IN_FEATURES, "
            "MODEL.NECK.IN_FEATURES)."
        )


def examine_levels(cfg: CfgNode, model: nn.Module, dataset: Sequence[dict]) -> tuple[str, list[str]]:
    """Which levels the annotated boxes read in training, in a line, and what gets no gradient, a phrase each.

    Args:
        cfg, dataset: as for `report_levels`.
        model: the detector. Of those whose boxes are not routed to levels there is nothing to say, "" and [].
    """
    routing = next((module for module in model.modules() if isinstance(module, LevelRouting)), None)
    if routing is None:
        return "", []
    names = list(cfg.MODEL.ROI_HEADS.IN_FEATURES)
    read = set(names)
    if type(routing) is LevelRouting:
        counts = count_levels(routing, training_sizes(dataset, cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN))
        line = describe(names, counts)
        read = {name for name, count in zip(names, counts, strict=True) if count}
        read |= set(_read_besides(cfg, model, routing, dataset))
    else:
        line = f"Each box reads all levels, {', '.join(names)} (MODEL.ROI_ROUTING.MODE {cfg.MODEL.ROI_ROUTING.MODE})."
    return line, what_learns_nothing(cast(Backbone, model.backbone), names, [name for name in names if name in read])


def training_sizes(dataset: Sequence[dict], shorter_sides: Sequence[int], longest: int) -> np.ndarray:
    """(M, 2) width and height, in pixels of the network's input, of the annotated boxes of a data set.

    That is after resizing, image by image to one of the sizes in turn, and without random crops. Crowds are left out.
    Of many images a random sample is taken, until there are `MAX_BOXES` boxes.

    Args:
        dataset: images in detectron2's format.
        shorter_sides: lengths that the shorter side of an image is resized to (0: not at all).
        longest: that the longer side may become.
    """
    sizes: list[tuple[float, float]] = []
    for place, index in enumerate(np.random.default_rng(0).permutation(len(dataset)).tolist()):
        if len(sizes) >= MAX_BOXES:
            break
        record = dataset[index]
        scale = _scale(record, shorter_sides[place % len(shorter_sides)], longest)
        for annotation in record.get("annotations", []):
            x0, y0, x1, y1 = BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYXY_ABS)
            if not annotation.get("iscrowd"):
                sizes.append((scale * (x1 - x0), scale * (y1 - y0)))
    return np.array(sizes, dtype=np.float64).reshape(-1, 2)


def _scale(record: dict, shorter_side: int, longest: int) -> float:
    shorter, longer = sorted((record["height"], record["width"]))
    return min((shorter_side or shorter) / shorter, longest / longer)


def count_levels(routing: LevelRouting, sizes: np.ndarray) -> list[int]:
    """How many boxes of these (M, 2) widths and heights in pixels read each level, lowest level first."""
    corners = torch.from_numpy(sizes).float()
    levels = routing.assign_levels(torch.cat([torch.zeros_like(corners), corners], dim=1)) - routing.levels[0]
    return torch.bincount(levels, minlength=len(routing.levels)).tolist()


def describe(names: Sequence[str], counts: Sequence[int]) -> str:
    """The line of the log: which share of the annotated boxes reads each level, lowest level first."""
    total = sum(counts)
    if not total:
        return "The training images have no annotated boxes, so no level is known to be read."
    shares = ", ".join(f"{name} {_percent(count / total)}" for name, count in zip(names, counts, strict=True))
    boxes = f"{total} annotated boxes" + (", a random sample," if total >= MAX_BOXES else "")
    return f"Levels that {boxes} read at the training size: {shares}."


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if 0 < share < 0.1 else f"{100 * share:.0f} %"


def _read_besides(cfg: CfgNode, model: nn.Module, routing: LevelRouting, dataset: Sequence[dict]) -> Iterator[str]:
    """Names of levels that something reads which is no annotated box.

    These are dense predictions (of a region proposal network, or those that proposals are chosen from), which look at
    every cell, and learned proposals where they start.
    """
    for part in ("dense_queries", "proposal_generator"):
        yield from getattr(getattr(model, part, None), "in_features", [])
    learned = getattr(model, "init_proposal_boxes", None)
    if learned is None or not len(dataset):
        return
    scale = _scale(dataset[0], max(cfg.INPUT.MIN_SIZE_TRAIN), cfg.INPUT.MAX_SIZE_TRAIN)
    boxes = box_convert(learned.weight.detach().cpu(), "cxcywh", "xyxy")
    boxes = boxes * scale * torch.tensor([dataset[0]["width"], dataset[0]["height"]] * 2)
    for level in routing.assign_levels(boxes).unique().tolist():
        yield cfg.MODEL.ROI_HEADS.IN_FEATURES[level - routing.levels[0]]


def what_learns_nothing(backbone: Backbone, names: Sequence[str], read: Sequence[str]) -> list[str]:
    """Phrases for a message: levels that nothing reads, and what of the network below them gets no gradient.

    Args:
        backbone: makes the levels.
        names: levels that the detector takes.
        read: those of them that something reads.
    """
    unread = [name for name in names if name not in read]
    idle = {id(parameter) for parameter in idle_parameters(backbone, read)}
    problems = [f"nothing reads {', '.join(unread)}"] if unread else []
    if stages := idle_stages(getattr(backbone, "bottom_up", backbone), idle):
        problems.append(f"{', '.join(stages)} of the bottom-up network gets no gradient")
    neck = getattr(backbone, "neck", None)
    if neck is not None:
        trainable = [p for p in neck.parameters() if p.requires_grad]
        lost = sum(p.numel() for p in trainable if id(p) in idle)
        if lost:
            share = _percent(lost / sum(p.numel() for p in trainable))
            problems.append(f"{share} of the neck's parameters get no gradient")
    return problems


def idle_parameters(backbone: Backbone, read: Sequence[str]) -> list[Tensor]:
    """Trainable parameters of a backbone that no gradient reaches if only some of its levels are read.

    Args:
        backbone: maps images to named levels.
        read: names of the levels that a loss depends on.
    """
    trainable: list[Tensor] = [p for p in backbone.parameters() if p.requires_grad]
    if not trainable or not read:
        return trainable
    strides = [shape.stride or 1 for shape in backbone.output_shape().values()]
    side = CELLS * math.lcm(backbone.size_divisibility or 1, *strides)
    mode = backbone.training
    backbone.eval()  # norms must not count this picture
    try:
        maps = backbone(torch.zeros(1, 3, side, side, device=trainable[0].device))
    finally:
        backbone.train(mode)
    total = torch.stack([maps[name].sum() for name in read]).sum()
    gradients = torch.autograd.grad(total, trainable, allow_unused=True)
    return [p for p, gradient in zip(trainable, gradients, strict=True) if gradient is None]


def idle_stages(network: nn.Module, idle: Set[int]) -> list[str]:
    """Names of the parts of a bottom-up network all of whose trainable parameters have their `id` in `idle`."""
    children = dict(network.named_children())
    if len(children) == 1:
        return idle_stages(next(iter(children.values())), idle)
    stages = []
    for name, stage in children.items():
        trainable = {id(p) for p in stage.parameters() if p.requires_grad}
        if trainable and idle >= trainable:
            stages.append(name)
    return stages
