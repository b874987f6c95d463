"""Every config key that Sparse R-CNN adds to detectron2's, its default and its meaning."""

import copy
from collections.abc import Mapping
from operator import attrgetter
from typing import Any

import torch
from detectron2.config import CfgNode

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""What `TEST.PRECISION` may say."""
AMP_PRECISIONS = ("float16", "bfloat16", "auto")
"""What `SOLVER.AMP.PRECISION` may say."""
MAX_PIXELS = 2**26
"""Default of `INPUT.MAX_PIXELS`: 8192 × 8192, more than cameras make; 192 MiB as RGB in every process that reads."""


SPARSERCNN_DEFAULTS: dict[str, Any] = {
    # The levels that boxes read, and RoIAlign as published: detectron2's own defaults are those of its C4 models.
    "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlignV2",
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": 2,
    "SOLVER.OPTIMIZER": "ADAMW",
    # Norms decay as all other parameters do.
    "SOLVER.WEIGHT_DECAY_NORM": None,
    "TEST.AUG.CVPODS_TTA": True,
    # Shorter sides of the views of test-time augmentation. Each has its range in TEST.AUG.SCALE_RANGES.
    "TEST.AUG.MIN_SIZES": (400, 500, 600, 640, 700, 900, 1000, 1100, 1200, 1300, 1400, 1800, 800),
}
"""Defaults, as published, of keys that other detectors have too, with other defaults."""


def add_sparsercnn_config(cfg: CfgNode) -> None:
    """Add the keys of Sparse R-CNN to `cfg`, in place. Names and defaults are those of the published configs."""
    add_keys(cfg)
    set_defaults(cfg, SPARSERCNN_DEFAULTS)


def set_defaults(cfg: CfgNode, values: Mapping[str, Any]) -> None:
    """Set keys of `cfg`, in place; {"MODEL.DEVICE": "cpu"} sets `cfg.MODEL.DEVICE`."""
    for key, value in values.items():
        node, _, name = key.rpartition(".")
        attrgetter(node)(cfg)[name] = copy.copy(value)


def add_keys(cfg: CfgNode) -> None:
    """Add the keys of this project to `cfg`, in place, and change no default of detectron2's."""
    cfg.MODEL.SparseRCNN = _head_and_loss()
    cfg.MODEL.ROI_ROUTING = _roi_routing()

    # Keep only the inputs of pieces of the backbone and of refinement stages in training and compute the rest again in
    # the backward pass: the same numbers, less memory, more time. (Batch norms of timm's networks that train count
    # each batch twice in their running statistics.)
    cfg.MODEL.GRADIENT_CHECKPOINTING = False

    # Smallest and largest factor of large-scale jitter, in training: instead of being resized to MIN_SIZE_TRAIN a
    # picture is scaled to fit into a square of MAX_SIZE_TRAIN times a random factor, and a square of MAX_SIZE_TRAIN is
    # cut out of what is larger. Empty: no jitter.
    cfg.INPUT.SCALE_JITTER = []

    # Share of training samples that are put together from four images, see `sparsercnn/data/mosaic.py`.
    cfg.INPUT.MOSAIC = 0.0

    # Brightness, contrast and saturation of a training image are each changed by a random factor of 1 ± this much.
    cfg.INPUT.COLOR_JITTER = 0.0

    # Data sets of one's own: [name, annotation file in COCO format, image folder] each.
    cfg.DATASETS.COCO_JSON = []

    # At a training image that cannot be read "stop", with a checkpoint, or "skip" it: the next one of the data set
    # stands in for it, the log names it, and `replaced_images` in metrics.json counts such samples.
    cfg.DATALOADER.BAD_IMAGES = "stop"

    # Images of more pixels are refused before they are decoded: small files can hold enormous ones, made to fill the
    # memory. At most 178956970, where Pillow refuses itself.
    cfg.INPUT.MAX_PIXELS = MAX_PIXELS

    # Send what training logs to an experiment tracker, too: "wandb", "mlflow" or "trackio", which must be installed.
    # Where it sends it, to a server or a folder, is up to its own settings. "" for none.
    cfg.TRACKER = ""

    _add_test_keys(cfg)
    _add_solver_keys(cfg)

    cfg.DISTRIBUTED = CfgNode()
    # With several processes: seconds that one waits for another which does not get on (is stopped, hangs, is out of
    # reach) before the run ends. An iteration and the writing of a checkpoint must take less; an evaluation need not.
    cfg.DISTRIBUTED.TIMEOUT = 600


def _add_test_keys(cfg: CfgNode) -> None:
    # Evaluate and draw with a copy of the model made fast, see `prepare_for_inference`: the same results, but for
    # rounding.
    cfg.TEST.PREPARE = True
    # Evaluate and draw in "float32", "bfloat16" or "float16".
    cfg.TEST.PRECISION = "float32"
    # Numbers of refinement stages: evaluate with so many instead of all of them, too. The results of stage 2 have the
    # suffix `_stage2`.
    cfg.TEST.STAGES = []
    # After each evaluation during training, draw what is found on so many images of the first of DATASETS.TEST for
    # TensorBoard.
    cfg.TEST.PICTURES = 0
    # Proposals of an image, which are also its detections, in place of those that the model was trained with; 0 for
    # these. Of learned proposals extra ones are made, see `sparsercnn/modeling/more_proposals.py`.
    cfg.TEST.NUM_PROPOSALS = 0
    # Look at square tiles of so many pixels of a picture, each resized as a picture is, and merge what is found without
    # duplicates, see `sparsercnn/evaluation/tiles.py`; 0 for whole pictures. And the least share of its side that a
    # tile has in common with the next one.
    cfg.TEST.TILE_SIZE = 0
    cfg.TEST.TILE_OVERLAP = 0.2
    # On GPUs, run the prepared copy through torch.compile (takes minutes to start).
    cfg.TEST.COMPILE = False
    # Test-time augmentation as Sparse R-CNN published it: overlapping boxes of a class are averaged by their scores
    # (soft voting). False: detectron2's, NMS within each class keeps the best of them.
    cfg.TEST.AUG.CVPODS_TTA = False
    # With CVPODS_TTA: of a view, keep only boxes that are as large in the original image as its range says.
    cfg.TEST.AUG.SCALE_FILTER = True
    # The range of each of TEST.AUG.MIN_SIZES: sqrt(width * height) of a box in pixels of the original image.
    cfg.TEST.AUG.SCALE_RANGES = [
        *([96, 10000], [96, 10000], [64, 10000], [64, 10000], [64, 10000], [0, 10000], [0, 10000]),
        *([0, 256], [0, 256], [0, 192], [0, 192], [0, 96], [0, 10000]),
    ]


def _add_solver_keys(cfg: CfgNode) -> None:
    # Train with the speed-ups of `sparsercnn.fast`: the same results, but for rounding.
    cfg.SOLVER.FAST = True
    # "ADAMW" or "SGD". As all keys that several detectors read, it follows MODEL.META_ARCHITECTURE where no file says
    # it: SGD is detectron2's, Sparse R-CNN's is in SPARSERCNN_DEFAULTS.
    cfg.SOLVER.OPTIMIZER = "SGD"
    # Images of an optimizer step, IMS_PER_BATCH times ACCUMULATE, that BASE_LR is meant for: with others the learning
    # rate is scaled linearly (Goyal et al., Accurate, Large Minibatch SGD, 2017). 0: BASE_LR is what it says. (By
    # SOLVER.REFERENCE_WORLD_SIZE detectron2 scales batch, rate and schedule to the number of processes.)
    cfg.SOLVER.REFERENCE_BATCH = 0
    # Learning rate of the backbone relative to SOLVER.BASE_LR.
    cfg.SOLVER.BACKBONE_MULTIPLIER = 1.0
    # Periodic checkpoints to keep, the newest; 0 for all. The best and the last one are kept always.
    cfg.SOLVER.CHECKPOINTS_KEPT = 0
    # Batches of IMS_PER_BATCH images per optimizer step; the same as one batch of so many times the images, but for
    # batch norms and for the class loss of the softmax variant, which is a mean over each batch.
    cfg.SOLVER.ACCUMULATE = 1
    # Evaluate, and leave in checkpoints, an average of the weights over about 1 / (1 - EMA_DECAY) iterations; 0 for
    # none. See `sparsercnn/engine/ema.py`.
    cfg.SOLVER.EMA_DECAY = 0.0
    # End training after so many evaluations (TEST.EVAL_PERIOD) without a better AP than the best, which model_best.pth
    # holds; 0: never. Schedules that end low, as OneCycle does, gain most at their end.
    cfg.SOLVER.EARLY_STOPPING = 0
    # Steps whose losses or gradient are not finite that a run may leave out before such a step ends it.
    cfg.SOLVER.MAX_SKIPPED_STEPS = 0
    # Use only operations that give the same bits each time, so that a run on a GPU resumes exactly too; slower.
    cfg.SOLVER.DETERMINISTIC = False
    # Of SOLVER.AMP: "float16", "bfloat16", or "auto": bfloat16 where the processor or the GPU multiplies it fastest (on
    # CPUs: with AMX), else full precision, on GPUs without bfloat16 float16.
    cfg.SOLVER.AMP.PRECISION = "float16"


def _head_and_loss() -> CfgNode:
    node = CfgNode()
    # Classes of objects; learned proposals, which are also the detections of an image.
    node.NUM_CLASSES = 80
    node.NUM_PROPOSALS = 300

    # Width of object features, attention heads, width of the feed-forward layer.
    node.HIDDEN_DIM = 256
    node.NHEADS = 8
    node.DIM_FEEDFORWARD = 2048
    node.DROPOUT = 0.0
    # "relu" or "gelu", in the feed-forward layer.
    node.ACTIVATION = "relu"
    # Linear layers before the class logits and before the box deltas.
    node.NUM_CLS = 1
    node.NUM_REG = 3
    # Refinement stages.
    node.NUM_HEADS = 6
    # Matrices generated from each object feature (always 2, as published), and their inner width.
    node.NUM_DYNAMIC = 2
    node.DIM_DYNAMIC = 64

    # Weights of the set loss and of the matching cost.
    node.CLASS_WEIGHT = 2.0
    node.GIOU_WEIGHT = 2.0
    node.L1_WEIGHT = 5.0
    # Supervise every stage, not only the last.
    node.DEEP_SUPERVISION = True
    # Focal loss on K sigmoids, or (False) cross entropy on K + 1 classes with this weight for "no object".
    node.USE_FOCAL = True
    node.NO_OBJECT_WEIGHT = 0.1
    # Of the focal loss: weight of an object's class (background has 1 - ALPHA), and exponent that plays down easy
    # examples.
    node.ALPHA = 0.25
    node.GAMMA = 2.0
    # Score that every class starts with.
    node.PRIOR_PROB = 0.01

    # What follows makes training need fewer iterations; see docs/accuracy.md. The defaults are as published.
    # "one_to_one", or "dynamic_k": in all stages but the last an object gets as many proposals as fit it.
    node.ASSIGNMENT = "one_to_one"
    # "focal", or with the overlap of a box as what its score learns: "varifocal" or "matchability".
    node.CLASS_LOSS = "focal"
    # Where proposals start: "image" (all on the whole image), "grid", "kmeans" (of the training boxes), or "dense": on
    # the best locations of each image.
    node.PROPOSALS = "image"
    # Levels on which "dense" looks for them, of those that MODEL.ROI_HEADS.IN_FEATURES names; [] for all.
    node.DENSE_IN_FEATURES = []
    # Noised copies of annotated boxes that are refined beside the proposals in training, for each image; 0 for none.
    # Their noise: of a side relative to its length, and the chance of a random class.
    node.DENOISING_QUERIES = 0
    node.BOX_NOISE = 0.4
    node.LABEL_NOISE = 0.2
    # Of two detections of a class that overlap (IoU) more than this the worse gets score 0; 1: none does, as published.
    # For trainings of minutes, which find objects long before they have learned to find each only once.
    node.DISTINCT_OVERLAP = 1.0
    # All stages are the same one, with one set of weights.
    node.SHARED_STAGES = False
    return node


def _roi_routing() -> CfgNode:
    node = CfgNode()
    # "level": each box reads one level, k = k0 + log2(sqrt(w h) / 224) (FPN); "adaptive": all levels, a 3×3
    # convolution, norm and ReLU each, element-wise maximum (PANet); "soft": all levels, summed with learned spatial
    # weights (AugFPN).
    node.MODE = "level"
    # k0, and the box size in pixels that reads level k0.
    node.CANONICAL_LEVEL = 4
    node.CANONICAL_BOX_SIZE = 224
    # "fused" pools all levels in one lookup; "ROIPooler" is detectron2's, the baseline. The results are the same.
    node.POOLER = "fused"
    return node
