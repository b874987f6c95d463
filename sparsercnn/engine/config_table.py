"""The table of config keys and what their values must be: all that a mistake can be told from without data or model.

Values that detectron2 accepts and that make sense are accepted. Keys of a part are looked at only when it is used.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from detectron2.config import CfgNode
from detectron2.modeling import (
    ANCHOR_GENERATOR_REGISTRY,
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_HEADS_REGISTRY,
    RPN_HEAD_REGISTRY,
)
from fvcore.common.registry import Registry

from ..config import AMP_PRECISIONS, PRECISIONS
from ..data.images import LARGEST_MAX_PIXELS, MAX_ASPECT_RATIO
from ..modeling.class_loss import CLASS_LOSSES
from ..modeling.head import ACTIVATIONS
from ..modeling.initial_boxes import INITIAL_BOXES
from ..modeling.matcher import ASSIGNMENTS
from ..modeling.roi_routing import POOLERS, ROUTINGS
from .optimizer import OPTIMIZERS
from .requirements import (
    INCREASING,
    NUMBER,
    WORD,
    Requirement,
    above,
    at_least,
    at_most,
    below,
    between,
    each,
    every,
    inside,
    is_number,
    one_of,
    unless,
)
from .schedule import SCHEDULES

# What `detectron2.layers.get_norm` knows.
NORMS = ("", "BN", "SyncBN", "FrozenBN", "GN", "LN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N")
SAMPLERS = ("TrainingSampler", "RepeatFactorTrainingSampler", "RandomSubsetTrainingSampler")
CROP_TYPES = ("relative_range", "relative", "absolute", "absolute_range")
# With an image of the largest aspect ratio, a smaller limit of the longer side would leave nothing of the shorter one.
SMALLEST_MAX_SIZE = MAX_ASPECT_RATIO // 2
CHANNELS = {"RGB": 3, "BGR": 3, "L": 1, "YUV-BT.601": 3, "HSV": 3, "YCbCr": 3, "LAB": 3}
"""Channels of each image format."""


@dataclass(frozen=True)
class Checks:
    """Checks that go together.

    Attributes:
        applies: to which configs.
        choices: of keys that name one of several things.
        values: what the value of a key must be.
        relations: what the values of several keys together must be.
        doubtful: relations without which a config runs, but hardly as it was meant.
    """

    applies: Callable[[CfgNode], bool]
    choices: dict[str, Iterable[str] | Registry] = field(default_factory=dict)
    values: dict[str, Requirement] = field(default_factory=dict)
    relations: dict[tuple[str, ...], Requirement] = field(default_factory=dict)
    doubtful: dict[tuple[str, ...], Requirement] = field(default_factory=dict)


def _uses_resnet(cfg: CfgNode) -> bool:
    name = cfg.MODEL.BACKBONE.NAME
    return (cfg.MODEL.NECK.BOTTOM_UP if name == "build_neck_backbone" else name).startswith("build_resnet")


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
        "TEST.PRECISION": PRECISIONS,
        "FLOAT32_PRECISION": ("", "highest", "high", "medium"),
    },
    values={
        "MODEL.PIXEL_MEAN": each(NUMBER),
        "MODEL.PIXEL_STD": each(above(0)),
        "INPUT.MIN_SIZE_TEST": at_least(0),
        "INPUT.MAX_SIZE_TEST": at_least(SMALLEST_MAX_SIZE),
        "INPUT.MAX_PIXELS": between(1, LARGEST_MAX_PIXELS),
        "DATASETS.TRAIN": each(WORD, shortest=0),
        "DATASETS.TEST": each(WORD, shortest=0),
        "DATALOADER.NUM_WORKERS": between(0, 1024),
        "TEST.DETECTIONS_PER_IMAGE": at_least(-1),
        "TEST.EXPECTED_RESULTS": each(
            Requirement("be [task, metric, value, tolerance], like ['bbox', 'AP', 42, 0.5]", _is_expected_result), 0
        ),
        # NumPy takes no larger ones, and each process adds its number.
        "SEED": at_most(2**31 - 1),
    },
    relations={
        ("MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD"): Requirement(
            "they need as many values, one for each channel", lambda mean, std: len(mean) == len(std)
        ),
        ("INPUT.FORMAT", "MODEL.PIXEL_MEAN"): Requirement(
            "there must be a mean for each channel", lambda name, mean: len(mean) == CHANNELS[name]
        ),
        ("INPUT.MIN_SIZE_TEST", "INPUT.MAX_SIZE_TEST"): Requirement(
            "the shorter side cannot be the longer one; set both to fit the longer side", lambda low, high: low <= high
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
    },
    values={
        "INPUT.MIN_SIZE_TRAIN": each(at_least(0)),
        "INPUT.MAX_SIZE_TRAIN": at_least(SMALLEST_MAX_SIZE),
        "INPUT.CROP.SIZE": each(above(0), 2, 2),
        "DATALOADER.REPEAT_THRESHOLD": at_least(0),
        "DATALOADER.RANDOM_SUBSET_RATIO": every(above(0), at_most(1)),
        "SOLVER.MAX_ITER": at_least(1),
        "SOLVER.IMS_PER_BATCH": at_least(1),
        "SOLVER.ACCUMULATE": at_least(1),
        "SOLVER.EMA_DECAY": every(at_least(0), below(1)),
        "SOLVER.REFERENCE_WORLD_SIZE": at_least(0),
        "SOLVER.CHECKPOINT_PERIOD": at_least(1),
        "SOLVER.BASE_LR": above(0),
        "SOLVER.BASE_LR_END": at_least(0),
        "SOLVER.BACKBONE_MULTIPLIER": at_least(0),
        "SOLVER.BIAS_LR_FACTOR": at_least(0),
        "SOLVER.MOMENTUM": between(0, 1),
        "SOLVER.WEIGHT_DECAY": at_least(0),
        "SOLVER.WEIGHT_DECAY_NORM": at_least(0),
        "SOLVER.WEIGHT_DECAY_BIAS": unless(None, at_least(0)),
        "SOLVER.GAMMA": above(0),
        "SOLVER.STEPS": every(each(at_least(0), shortest=0), INCREASING),
        "SOLVER.NUM_DECAYS": at_least(1),
        "SOLVER.WARMUP_FACTOR": between(0, 1),
        "SOLVER.WARMUP_ITERS": at_least(0),
        "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": above(0),
        "SOLVER.CLIP_GRADIENTS.NORM_TYPE": unless(float("inf"), above(0)),
        "TEST.EVAL_PERIOD": at_least(0),
        "TEST.PRECISE_BN.NUM_ITER": at_least(1),
        "VIS_PERIOD": at_least(0),
    },
    relations={
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

SPARSE_RCNN = Checks(
    lambda cfg: cfg.MODEL.META_ARCHITECTURE == "SparseRCNN",
    choices={
        "MODEL.ROI_ROUTING.MODE": ROUTINGS,
        "MODEL.ROI_ROUTING.POOLER": POOLERS,
        "MODEL.ROI_BOX_HEAD.POOLER_TYPE": ("ROIAlignV2",),
        "MODEL.SparseRCNN.ACTIVATION": ACTIVATIONS,
        "MODEL.SparseRCNN.ASSIGNMENT": ASSIGNMENTS,
        "MODEL.SparseRCNN.CLASS_LOSS": CLASS_LOSSES,
        "MODEL.SparseRCNN.PROPOSALS": (*INITIAL_BOXES, "dense"),
    },
    values={
        "MODEL.ROI_HEADS.IN_FEATURES": each(WORD),
        "MODEL.ROI_HEADS.NMS_THRESH_TEST": between(0, 1),
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": at_least(1),
        "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": at_least(0),
        "MODEL.ROI_ROUTING.CANONICAL_BOX_SIZE": at_least(1),
        "MODEL.SparseRCNN.NUM_CLASSES": at_least(1),
        "MODEL.SparseRCNN.NUM_PROPOSALS": at_least(1),
        "MODEL.SparseRCNN.HIDDEN_DIM": at_least(1),
        "MODEL.SparseRCNN.NHEADS": at_least(1),
        "MODEL.SparseRCNN.DIM_FEEDFORWARD": at_least(1),
        "MODEL.SparseRCNN.DROPOUT": between(0, 1),
        "MODEL.SparseRCNN.NUM_CLS": at_least(0),
        "MODEL.SparseRCNN.NUM_REG": at_least(0),
        "MODEL.SparseRCNN.NUM_HEADS": at_least(1),
        "MODEL.SparseRCNN.NUM_DYNAMIC": one_of(2),
        "MODEL.SparseRCNN.DIM_DYNAMIC": at_least(1),
        "MODEL.SparseRCNN.CLASS_WEIGHT": at_least(0),
        "MODEL.SparseRCNN.GIOU_WEIGHT": at_least(0),
        "MODEL.SparseRCNN.L1_WEIGHT": at_least(0),
        "MODEL.SparseRCNN.NO_OBJECT_WEIGHT": at_least(0),
        "MODEL.SparseRCNN.ALPHA": between(0, 1),
        "MODEL.SparseRCNN.GAMMA": at_least(0),
        "MODEL.SparseRCNN.PRIOR_PROB": inside(0, 1),
        "MODEL.SparseRCNN.DENSE_IN_FEATURES": each(WORD, shortest=0),
        "MODEL.SparseRCNN.DENOISING_QUERIES": at_least(0),
        "MODEL.SparseRCNN.BOX_NOISE": at_least(0),
        "MODEL.SparseRCNN.LABEL_NOISE": between(0, 1),
        "TEST.STAGES": each(at_least(1), shortest=0),
    },
    relations={
        ("MODEL.SparseRCNN.HIDDEN_DIM", "MODEL.SparseRCNN.NHEADS"): Requirement(
            "the width must be a multiple of the heads", lambda width, heads: width % heads == 0
        ),
        ("TEST.STAGES", "MODEL.SparseRCNN.NUM_HEADS"): Requirement(
            "there are not so many stages", lambda stages, count: max(stages, default=0) <= count
        ),
        ("MODEL.ROI_ROUTING.POOLER", "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO"): Requirement(
            "fused needs a ratio of 1 or more, ROIPooler takes 0", lambda name, ratio: name != "fused" or ratio >= 1
        ),
    },
)

OTHER_DETECTORS = Checks(
    lambda cfg: not SPARSE_RCNN.applies(cfg),
    values={"TEST.STAGES": Requirement("be empty: only Sparse R-CNN has refinement stages", lambda x: not x)},
)

TWO_STAGES = Checks(
    lambda cfg: cfg.MODEL.META_ARCHITECTURE in ("GeneralizedRCNN", "ProposalNetwork"),
    choices={
        "MODEL.ROI_HEADS.NAME": ROI_HEADS_REGISTRY,
        "MODEL.ANCHOR_GENERATOR.NAME": ANCHOR_GENERATOR_REGISTRY,
        "MODEL.RPN.HEAD_NAME": RPN_HEAD_REGISTRY,
    },
    values={
        "MODEL.ROI_HEADS.IN_FEATURES": each(WORD),
        "MODEL.ROI_HEADS.NUM_CLASSES": at_least(1),
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": at_least(1),
        "MODEL.ROI_HEADS.POSITIVE_FRACTION": between(0, 1),
        "MODEL.ROI_HEADS.NMS_THRESH_TEST": between(0, 1),
        "MODEL.RPN.IN_FEATURES": each(WORD),
        "MODEL.RPN.BATCH_SIZE_PER_IMAGE": at_least(1),
        "MODEL.RPN.POSITIVE_FRACTION": between(0, 1),
        "MODEL.RPN.NMS_THRESH": between(0, 1),
        **{
            f"MODEL.RPN.{name}_TOPK_{use}": at_least(1) for name in ("PRE_NMS", "POST_NMS") for use in ("TRAIN", "TEST")
        },
    },
)

PROPOSAL_GENERATOR = Checks(
    # The other name that detectron2 takes.
    lambda cfg: TWO_STAGES.applies(cfg) and cfg.MODEL.PROPOSAL_GENERATOR.NAME != "PrecomputedProposals",
    choices={"MODEL.PROPOSAL_GENERATOR.NAME": PROPOSAL_GENERATOR_REGISTRY},
)

RESNET = Checks(
    _uses_resnet,
    choices={"MODEL.RESNETS.NORM": NORMS},
    values={
        "MODEL.RESNETS.DEPTH": one_of(18, 34, 50, 101, 152),
        "MODEL.RESNETS.OUT_FEATURES": each(one_of("stem", "res2", "res3", "res4", "res5")),
        "MODEL.RESNETS.NUM_GROUPS": at_least(1),
        "MODEL.RESNETS.WIDTH_PER_GROUP": at_least(1),
        "MODEL.RESNETS.STEM_OUT_CHANNELS": at_least(1),
        "MODEL.RESNETS.RES2_OUT_CHANNELS": at_least(1),
        "MODEL.RESNETS.RES5_DILATION": one_of(1, 2),
        "MODEL.RESNETS.DEFORM_ON_PER_STAGE": each(one_of(True, False), 4, 4),
    },
    relations={
        ("MODEL.RESNETS.DEPTH", f"MODEL.RESNETS.{name}"): Requirement(
            f"a ResNet of 18 or 34 layers needs {needed}", lambda depth, x, needed=needed: depth > 34 or x == needed
        )
        for name, needed in {"RES2_OUT_CHANNELS": 64, "RES5_DILATION": 1, "NUM_GROUPS": 1}.items()
    },
)

DETECTRON2_FPN = Checks(
    lambda cfg: cfg.MODEL.BACKBONE.NAME in ("build_resnet_fpn_backbone", "build_retinanet_resnet_fpn_backbone"),
    choices={"MODEL.FPN.NORM": NORMS, "MODEL.FPN.FUSE_TYPE": ("sum", "avg")},
    values={"MODEL.FPN.OUT_CHANNELS": at_least(1), "MODEL.FPN.IN_FEATURES": each(WORD)},
    relations={
        ("MODEL.RESNETS.OUT_FEATURES", "MODEL.FPN.IN_FEATURES"): Requirement(
            "the pyramid reads levels that the ResNet must give", lambda made, read: set(read) <= set(made)
        )
    },
)

TABLE = (EVERY_MODEL, VIEWS, TRAINING, CROP, SPARSE_RCNN, OTHER_DETECTORS, TWO_STAGES, PROPOSAL_GENERATOR, RESNET, DETECTRON2_FPN)
