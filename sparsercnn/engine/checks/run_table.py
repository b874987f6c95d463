"""What the values of config keys must be that do not belong to a part of the model: images, data, training, tests.

All that a mistake can be told from without data or model. Values that detectron2 accepts and that make sense are
accepted.
"""

from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY

from ...config import AMP_PRECISIONS, PRECISIONS
from ...data.images import LARGEST_MAX_PIXELS, MAX_ASPECT_RATIO
from ...data.training import BAD_IMAGES, SAMPLERS
from ..optimizer import OPTIMIZERS
from ..schedule import SCHEDULES
from ..trackers import TRACKERS
from .requirements import (
    INCREASING,
    NUMBER,
    SMALLEST_FIRST,
    WORD,
    Checks,
    Requirement,
    above,
    at_least,
    at_most,
    below,
    between,
    each,
    every,
    is_number,
    unless,
)

CROP_TYPES = ("relative_range", "relative", "absolute", "absolute_range")
# With an image of the largest aspect ratio, a smaller limit of the longer side would leave nothing of the shorter one.
SMALLEST_MAX_SIZE = MAX_ASPECT_RATIO // 2
CHANNELS = {"RGB": 3, "BGR": 3, "L": 1, "YUV-BT.601": 3, "HSV": 3, "YCbCr": 3, "LAB": 3}
"""Channels of each image format."""


def _is_expected_result(entry: object) -> bool:
    if not isinstance(entry, list | tuple) or len(entry) != 4:
        return False
    return all(isinstance(x, str) for x in entry[:2]) and all(map(is_number, entry[2:]))


def _fits_crop_type(kind: str, size: list) -> bool:
    return max(size) <= 1 if kind.startswith("relative") else kind != "absolute_range" or size[0] <= size[1]


EVERY_MODEL = Checks(
    lambda cfg: True,
    choices={
        "MODEL.META_ARCHITECTURE": META_ARCH_REGISTRY,
        "MODEL.BACKBONE.NAME": BACKBONE_REGISTRY,
        "INPUT.FORMAT": CHANNELS,
        "TRACKER": TRACKERS,
        "TEST.PRECISION": PRECISIONS,
        "FLOAT32_PRECISION": ("", "highest", "high", "medium"),
    },
    values={
        "MODEL.PIXEL_MEAN": each(NUMBER),
        "MODEL.PIXEL_STD": each(above(0)),
        "INPUT.MIN_SIZE_TEST": at_least(0),
        "INPUT.MAX_SIZE_TEST": at_least(SMALLEST_MAX_SIZE),
        "INPUT.COLOR_JITTER": between(0, 1),
        "INPUT.MOSAIC": between(0, 1),
        "INPUT.MAX_PIXELS": between(1, LARGEST_MAX_PIXELS),
        "DATASETS.TRAIN": each(WORD, shortest=0),
        "DATASETS.TEST": each(WORD, shortest=0),
        "DATALOADER.NUM_WORKERS": between(0, 1024),
        "TEST.DETECTIONS_PER_IMAGE": at_least(-1),
        "DISTRIBUTED.TIMEOUT": at_least(1),
        "TEST.EXPECTED_RESULTS": each(
            Requirement("be [task, metric, value, tolerance], like ['bbox', 'AP', 42, 0.5]", _is_expected_result), 0
        ),
        # NumPy takes no larger ones, and each process adds its number.
        "SEED": at_most(2**31 - 1),
    },
    relations={
        ("INPUT.MOSAIC", "MODEL.LOAD_PROPOSALS"): Requirement(
            "precomputed proposals are of single images", lambda share, given: not (share and given)
        ),
        ("INPUT.COLOR_JITTER", "INPUT.FORMAT"): Requirement(
            "only colors of RGB images are changed", lambda strength, name: not strength or name == "RGB"
        ),
        ("MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD"): Requirement(
            "they need as many values, one for each channel", lambda mean, std: len(mean) == len(std)
        ),
        ("INPUT.FORMAT", "MODEL.PIXEL_MEAN"): Requirement(
            "there must be a mean for each channel", lambda name, mean: len(mean) == CHANNELS[name]
        ),
        ("INPUT.MIN_SIZE_TEST", "INPUT.MAX_SIZE_TEST"): Requirement(
            "the shorter side cannot be the longer one; set both to fit the longer side", lambda low, high: low <= high
        ),
        ("MODEL.LOAD_PROPOSALS", "TEST.AUG.ENABLED"): Requirement(
            "precomputed proposals fit no other view of an image", lambda loads, views: not (loads and views)
        ),
        ("TEST.PREPARE", "TEST.COMPILE"): Requirement(
            "only a prepared model is compiled", lambda prepare, compiles: prepare or not compiles
        ),
    },
)

VIEWS = Checks(
    lambda cfg: cfg.TEST.AUG.ENABLED,
    values={"TEST.AUG.MIN_SIZES": each(at_least(1)), "TEST.AUG.MAX_SIZE": at_least(SMALLEST_MAX_SIZE)},
)

TRAINING = Checks(
    lambda cfg: True,
    choices={
        "SOLVER.OPTIMIZER": OPTIMIZERS,
        "SOLVER.LR_SCHEDULER_NAME": SCHEDULES,
        "SOLVER.WARMUP_METHOD": ("linear", "constant"),
        "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": ("full_model", "norm", "value"),
        "SOLVER.AMP.PRECISION": AMP_PRECISIONS,
        "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("choice", "range"),
        "INPUT.RANDOM_FLIP": ("horizontal", "vertical", "none"),
        "INPUT.CROP.TYPE": CROP_TYPES,
        "INPUT.MASK_FORMAT": ("polygon", "bitmask"),
        "DATALOADER.SAMPLER_TRAIN": SAMPLERS,
        "DATALOADER.BAD_IMAGES": BAD_IMAGES,
    },
    values={
        "INPUT.MIN_SIZE_TRAIN": each(at_least(0)),
        "INPUT.MAX_SIZE_TRAIN": at_least(SMALLEST_MAX_SIZE),
        "INPUT.CROP.SIZE": each(above(0), 2, 2),
        "INPUT.SCALE_JITTER": unless([], every(each(above(0), 2, 2), SMALLEST_FIRST)),
        "DATALOADER.REPEAT_THRESHOLD": at_least(0),
        "DATALOADER.RANDOM_SUBSET_RATIO": every(above(0), at_most(1)),
        "SOLVER.MAX_ITER": at_least(1),
        "SOLVER.IMS_PER_BATCH": at_least(1),
        "SOLVER.ACCUMULATE": at_least(1),
        "SOLVER.EMA_DECAY": every(at_least(0), below(1)),
        "SOLVER.REFERENCE_WORLD_SIZE": at_least(0),
        "SOLVER.REFERENCE_BATCH": at_least(0),
        "SOLVER.EARLY_STOPPING": at_least(0),
        "SOLVER.CHECKPOINT_PERIOD": at_least(1),
        "SOLVER.CHECKPOINTS_KEPT": at_least(0),
        "SOLVER.MAX_SKIPPED_STEPS": at_least(0),
        "SOLVER.BASE_LR": above(0),
        "SOLVER.BASE_LR_END": at_least(0),
        "SOLVER.BACKBONE_MULTIPLIER": at_least(0),
        "SOLVER.BIAS_LR_FACTOR": at_least(0),
        "SOLVER.MOMENTUM": between(0, 1),
        "SOLVER.WEIGHT_DECAY": at_least(0),
        "SOLVER.WEIGHT_DECAY_NORM": unless(None, at_least(0)),
        "SOLVER.WEIGHT_DECAY_BIAS": unless(None, at_least(0)),
        "SOLVER.GAMMA": above(0),
        "SOLVER.STEPS": every(each(at_least(0), shortest=0), INCREASING),
        "SOLVER.NUM_DECAYS": at_least(1),
        "SOLVER.WARMUP_FACTOR": between(0, 1),
        "SOLVER.WARMUP_ITERS": at_least(0),
        "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": above(0),
        "SOLVER.CLIP_GRADIENTS.NORM_TYPE": unless(float("inf"), above(0)),
        "TEST.EVAL_PERIOD": at_least(0),
        "TEST.PICTURES": at_least(0),
        "TEST.PRECISE_BN.NUM_ITER": at_least(1),
        "VIS_PERIOD": at_least(0),
    },
    relations={
        ("SOLVER.EARLY_STOPPING", "TEST.EVAL_PERIOD"): Requirement(
            "it takes evaluations to stop early; set TEST.EVAL_PERIOD", lambda patience, period: not patience or period
        ),
        ("SOLVER.REFERENCE_BATCH", "SOLVER.REFERENCE_WORLD_SIZE"): Requirement(
            "both scale the learning rate; choose one", lambda images, processes: not (images and processes)
        ),
        ("SOLVER.BASE_LR_END", "SOLVER.BASE_LR"): Requirement(
            "the learning rate cannot rise", lambda end, lr: end <= lr
        ),
        ("INPUT.MIN_SIZE_TRAIN", "INPUT.MAX_SIZE_TRAIN"): Requirement(
            "the shorter side cannot be the longer one; set both to fit the longer side",
            lambda sizes, longest: min(sizes) <= longest,
        ),
        ("INPUT.MIN_SIZE_TRAIN_SAMPLING", "INPUT.MIN_SIZE_TRAIN"): Requirement(
            "a range is the smallest and the largest size",
            lambda how, sizes: how == "choice" or (len(sizes) == 2 and sizes[0] <= sizes[1]),
        ),
        ("SOLVER.OPTIMIZER", "SOLVER.NESTEROV", "SOLVER.MOMENTUM"): Requirement(
            "Nesterov's momentum is above 0",
            lambda name, nesterov, momentum: name != "SGD" or not nesterov or momentum > 0,
        ),
        ("SOLVER.LR_SCHEDULER_NAME", "SOLVER.WARMUP_ITERS", "SOLVER.MAX_ITER"): Requirement(
            "the rise takes some, but not all iterations", lambda name, rise, end: name != "OneCycle" or 0 < rise < end
        ),
    },
    doubtful={
        ("SOLVER.WARMUP_ITERS", "SOLVER.MAX_ITER"): Requirement(
            "training ends before it reaches its learning rate", lambda rise, end: rise < end
        ),
        ("SOLVER.LR_SCHEDULER_NAME", "SOLVER.STEPS", "SOLVER.MAX_ITER"): Requirement(
            "training ends before the learning rate falls at all of these steps",
            lambda name, steps, end: name != "WarmupMultiStepLR" or all(step < end for step in steps),
        ),
    },
)

CROP = Checks(
    lambda cfg: cfg.INPUT.CROP.ENABLED,
    relations={
        ("INPUT.CROP.TYPE", "INPUT.CROP.SIZE"): Requirement(
            "relative sizes are shares up to 1, absolute_range is the smallest and the largest side", _fits_crop_type
        ),
    },
)

RUN_TABLE = (EVERY_MODEL, VIEWS, TRAINING, CROP)
