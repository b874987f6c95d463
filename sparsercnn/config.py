"""Every config key that Sparse R-CNN adds to detectron2's, its default and its meaning."""

import torch
from detectron2.config import CfgNode

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""What `TEST.PRECISION` may say."""
AMP_PRECISIONS = ("float16", "bfloat16", "auto")
"""What `SOLVER.AMP.PRECISION` may say."""


def add_sparsercnn_config(cfg: CfgNode) -> None:
    """Add the keys of Sparse R-CNN to `cfg`, in place. Names and defaults are those of the published configs."""
    cfg.MODEL.SparseRCNN = _head_and_loss()
    cfg.MODEL.ROI_ROUTING = _roi_routing()

    # The levels that boxes read, and RoIAlign as published: detectron2's own defaults are those of its C4 models.
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE = "ROIAlignV2"
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 7
    cfg.MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO = 2

    # Keep only the inputs of pieces of the backbone and of refinement stages in training and compute the rest again in
    # the backward pass: the same numbers, less memory, more time. (Batch norms of timm's networks that train count
    # each batch twice in their running statistics.)
    cfg.MODEL.GRADIENT_CHECKPOINTING = False

    # Data sets of one's own: [name, annotation file in COCO format, image folder] each.
    cfg.DATASETS.COCO_JSON = []

    # At a training image that cannot be read "stop", with a checkpoint, or "skip" it: the next one of the data set
    # stands in for it, the log names it, and `replaced_images` in metrics.json counts such samples.
    cfg.DATALOADER.BAD_IMAGES = "stop"

    # Evaluate and draw with a copy of the model made fast, see `prepare_for_inference`: the same results, but for
    # rounding.
    cfg.TEST.PREPARE = True
    # Evaluate and draw in "float32", "bfloat16" or "float16".
    cfg.TEST.PRECISION = "float32"
    # On GPUs, run the prepared copy through torch.compile (takes minutes to start).
    cfg.TEST.COMPILE = False

    # Train with the speed-ups of `sparsercnn.fast`: the same results, but for rounding.
    cfg.SOLVER.FAST = True
    # "ADAMW" or "SGD".
    cfg.SOLVER.OPTIMIZER = "ADAMW"
    # Learning rate of the backbone relative to SOLVER.BASE_LR.
    cfg.SOLVER.BACKBONE_MULTIPLIER = 1.0
    # Batches of IMS_PER_BATCH images per optimizer step; the same as one batch of so many times the images, but for
    # batch norms and for the class loss of the softmax variant, which is a mean over each batch.
    cfg.SOLVER.ACCUMULATE = 1
    # Steps whose losses or gradient are not finite that a run may leave out before such a step ends it.
    cfg.SOLVER.MAX_SKIPPED_STEPS = 0
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
