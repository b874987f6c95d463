"""What the values of config keys must be that belong to a part of the model, looked at only when it is used.

Values that detectron2 accepts and that make sense are accepted. What only the parts themselves know, such as which
levels a network has, they say when they are built.
"""

from detectron2.config import CfgNode
from detectron2.modeling import (
    ANCHOR_GENERATOR_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_HEADS_REGISTRY,
    RPN_HEAD_REGISTRY,
)

from ...modeling.class_loss import CLASS_LOSSES
from ...modeling.head import ACTIVATIONS
from ...modeling.initial_boxes import INITIAL_BOXES
from ...modeling.matcher import ASSIGNMENTS
from ...modeling.roi_routing import POOLERS, ROUTINGS
from .requirements import WORD, Checks, Requirement, at_least, below, between, each, every, inside, one_of

# What `detectron2.layers.get_norm` knows.
NORMS = ("", "BN", "SyncBN", "FrozenBN", "GN", "LN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N")
BOX_LOSSES = ("smooth_l1", "giou", "diou", "ciou")
# What detectron2 takes besides the registered proposal generators.
PRECOMPUTED = "PrecomputedProposals"


def _uses_resnet(cfg: CfgNode) -> bool:
    name = cfg.MODEL.BACKBONE.NAME
    return (cfg.MODEL.NECK.BOTTOM_UP if name == "build_neck_backbone" else name).startswith("build_resnet")


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
        "MODEL.SparseRCNN.DISTINCT_OVERLAP": between(0, 1),
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

LARGE_PICTURES = Checks(
    lambda cfg: True,
    values={
        "TEST.NUM_PROPOSALS": at_least(0),
        "TEST.TILE_SIZE": at_least(0),
        "TEST.TILE_OVERLAP": every(at_least(0), below(1)),
    },
    relations={
        ("TEST.TILE_SIZE", "TEST.AUG.ENABLED"): Requirement(
            "choose tiles or test-time augmentation", lambda tile, augmented: not (tile and augmented)
        ),
        ("TEST.TILE_SIZE", "MODEL.LOAD_PROPOSALS"): Requirement(
            "precomputed proposals are of whole pictures", lambda tile, given: not (tile and given)
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
        "MODEL.RPN.BBOX_REG_LOSS_TYPE": BOX_LOSSES,
        "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": BOX_LOSSES,
        "MODEL.ROI_BOX_HEAD.NORM": NORMS,
    },
    values={
        "MODEL.ROI_HEADS.IN_FEATURES": each(WORD),
        "MODEL.ROI_HEADS.NUM_CLASSES": at_least(1),
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": at_least(1),
        "MODEL.ROI_HEADS.POSITIVE_FRACTION": between(0, 1),
        "MODEL.ROI_HEADS.NMS_THRESH_TEST": between(0, 1),
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": between(0, 1),
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
    lambda cfg: TWO_STAGES.applies(cfg) and cfg.MODEL.PROPOSAL_GENERATOR.NAME != PRECOMPUTED,
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

MODEL_TABLE = (SPARSE_RCNN, LARGE_PICTURES, OTHER_DETECTORS, TWO_STAGES, PROPOSAL_GENERATOR, RESNET, DETECTRON2_FPN)
