"""Every default key of detectron2's config, including those of parts that this subset does not offer.

All keys are kept so that published YAML files merge unchanged. Suffixes `_TRAIN` and `_TEST` say when a key applies.
"""

from .config import CfgNode as CN

_MODEL = dict(
    META_ARCHITECTURE="GeneralizedRCNN",
    DEVICE="cuda",
    # a path, a URL, or detectron2://...
    WEIGHTS="",
    # in the channel order of INPUT.FORMAT, in the range [0, 255]
    PIXEL_MEAN=[103.530, 116.280, 123.675],
    PIXEL_STD=[1.0, 1.0, 1.0],
    LOAD_PROPOSALS=False,
    MASK_ON=False,
    KEYPOINT_ON=False,
    # FREEZE_AT: the stem is 1, res2 is 2, ...; 0 freezes nothing
    BACKBONE=dict(NAME="build_resnet_backbone", FREEZE_AT=2),
    RESNETS=dict(
        DEPTH=50,
        OUT_FEATURES=["res4"],
        NUM_GROUPS=1,
        NORM="FrozenBN",
        WIDTH_PER_GROUP=64,
        # True for the original (MSRA) models, False for torchvision's
        STRIDE_IN_1X1=True,
        RES5_DILATION=1,
        # 64 for depths 18 and 34
        RES2_OUT_CHANNELS=256,
        STEM_OUT_CHANNELS=64,
        # deformable convolution in res2, res3, res4, res5
        DEFORM_ON_PER_STAGE=[False, False, False, False],
        DEFORM_MODULATED=False,
        DEFORM_NUM_GROUPS=1,
    ),
    # FUSE_TYPE: "sum" or "avg"
    FPN=dict(IN_FEATURES=[], OUT_CHANNELS=256, NORM="", FUSE_TYPE="sum"),
    PROPOSAL_GENERATOR=dict(NAME="RPN", MIN_SIZE=0),
    ANCHOR_GENERATOR=dict(
        NAME="DefaultAnchorGenerator",
        SIZES=[[32, 64, 128, 256, 512]],
        ASPECT_RATIOS=[[0.5, 1.0, 2.0]],
        ANGLES=[[-90, 0, 90]],
        OFFSET=0.0,
    ),
    RPN=dict(
        HEAD_NAME="StandardRPNHead",
        IN_FEATURES=["res4"],
        BOUNDARY_THRESH=-1,
        IOU_THRESHOLDS=[0.3, 0.7],
        IOU_LABELS=[0, -1, 1],
        BATCH_SIZE_PER_IMAGE=256,
        POSITIVE_FRACTION=0.5,
        BBOX_REG_LOSS_TYPE="smooth_l1",
        BBOX_REG_LOSS_WEIGHT=1.0,
        BBOX_REG_WEIGHTS=(1.0, 1.0, 1.0, 1.0),
        SMOOTH_L1_BETA=0.0,
        LOSS_WEIGHT=1.0,
        PRE_NMS_TOPK_TRAIN=12000,
        PRE_NMS_TOPK_TEST=6000,
        POST_NMS_TOPK_TRAIN=2000,
        POST_NMS_TOPK_TEST=1000,
        NMS_THRESH=0.7,
        CONV_DIMS=[-1],
    ),
    ROI_HEADS=dict(
        NAME="Res5ROIHeads",
        NUM_CLASSES=80,
        IN_FEATURES=["res4"],
        IOU_THRESHOLDS=[0.5],
        IOU_LABELS=[0, 1],
        BATCH_SIZE_PER_IMAGE=512,
        POSITIVE_FRACTION=0.25,
        SCORE_THRESH_TEST=0.05,
        NMS_THRESH_TEST=0.5,
        PROPOSAL_APPEND_GT=True,
    ),
    ROI_BOX_HEAD=dict(
        NAME="",
        BBOX_REG_LOSS_TYPE="smooth_l1",
        BBOX_REG_LOSS_WEIGHT=1.0,
        BBOX_REG_WEIGHTS=(10.0, 10.0, 5.0, 5.0),
        SMOOTH_L1_BETA=0.0,
        POOLER_RESOLUTION=14,
        POOLER_SAMPLING_RATIO=0,
        POOLER_TYPE="ROIAlignV2",
        NUM_FC=0,
        FC_DIM=1024,
        NUM_CONV=0,
        CONV_DIM=256,
        NORM="",
        CLS_AGNOSTIC_BBOX_REG=False,
        TRAIN_ON_PRED_BOXES=False,
        USE_FED_LOSS=False,
        USE_SIGMOID_CE=False,
        FED_LOSS_FREQ_WEIGHT_POWER=0.5,
        FED_LOSS_NUM_CLASSES=50,
    ),
    ROI_BOX_CASCADE_HEAD=dict(
        BBOX_REG_WEIGHTS=((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0)),
        IOUS=(0.5, 0.6, 0.7),
    ),
    ROI_MASK_HEAD=dict(
        NAME="MaskRCNNConvUpsampleHead",
        POOLER_RESOLUTION=14,
        POOLER_SAMPLING_RATIO=0,
        POOLER_TYPE="ROIAlignV2",
        NUM_CONV=0,
        CONV_DIM=256,
        NORM="",
        CLS_AGNOSTIC_MASK=False,
    ),
    ROI_KEYPOINT_HEAD=dict(
        NAME="KRCNNConvDeconvUpsampleHead",
        POOLER_RESOLUTION=14,
        POOLER_SAMPLING_RATIO=0,
        POOLER_TYPE="ROIAlignV2",
        CONV_DIMS=(512,) * 8,
        NUM_KEYPOINTS=17,
        MIN_KEYPOINTS_PER_IMAGE=1,
        NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS=True,
        LOSS_WEIGHT=1.0,
    ),
    SEM_SEG_HEAD=dict(
        NAME="SemSegFPNHead",
        IN_FEATURES=["p2", "p3", "p4", "p5"],
        IGNORE_VALUE=255,
        NUM_CLASSES=54,
        CONVS_DIM=128,
        COMMON_STRIDE=4,
        NORM="GN",
        LOSS_WEIGHT=1.0,
    ),
    PANOPTIC_FPN=dict(
        INSTANCE_LOSS_WEIGHT=1.0,
        COMBINE=dict(ENABLED=True, OVERLAP_THRESH=0.5, STUFF_AREA_LIMIT=4096, INSTANCES_CONFIDENCE_THRESH=0.5),
    ),
    RETINANET=dict(
        NUM_CLASSES=80,
        IN_FEATURES=["p3", "p4", "p5", "p6", "p7"],
        NUM_CONVS=4,
        IOU_THRESHOLDS=[0.4, 0.5],
        IOU_LABELS=[0, -1, 1],
        PRIOR_PROB=0.01,
        SCORE_THRESH_TEST=0.05,
        TOPK_CANDIDATES_TEST=1000,
        NMS_THRESH_TEST=0.5,
        BBOX_REG_WEIGHTS=(1.0, 1.0, 1.0, 1.0),
        FOCAL_LOSS_GAMMA=2.0,
        FOCAL_LOSS_ALPHA=0.25,
        SMOOTH_L1_LOSS_BETA=0.1,
        BBOX_REG_LOSS_TYPE="smooth_l1",
        NORM="",
    ),
)

_INPUT = dict(
    # shorter sides to draw from; for sampling "range", its two ends
    MIN_SIZE_TRAIN=(800,),
    MIN_SIZE_TRAIN_SAMPLING="choice",
    MAX_SIZE_TRAIN=1333,
    # 0 keeps the size of the file
    MIN_SIZE_TEST=800,
    MAX_SIZE_TEST=1333,
    # "horizontal", "vertical" or "none"
    RANDOM_FLIP="horizontal",
    # TYPE and SIZE as in detectron2.data.transforms.RandomCrop
    CROP=dict(ENABLED=False, TYPE="relative_range", SIZE=[0.9, 0.9]),
    # a PIL mode, "BGR", or "YUV-BT.601"
    FORMAT="BGR",
    MASK_FORMAT="polygon",
)

_DATASETS = dict(
    TRAIN=(),
    TEST=(),
    PROPOSAL_FILES_TRAIN=(),
    PRECOMPUTED_PROPOSAL_TOPK_TRAIN=2000,
    PROPOSAL_FILES_TEST=(),
    PRECOMPUTED_PROPOSAL_TOPK_TEST=1000,
)

_DATALOADER = dict(
    NUM_WORKERS=4,
    ASPECT_RATIO_GROUPING=True,
    # TrainingSampler, RepeatFactorTrainingSampler or RandomSubsetTrainingSampler
    SAMPLER_TRAIN="TrainingSampler",
    REPEAT_THRESHOLD=0.0,
    REPEAT_SQRT=True,
    RANDOM_SUBSET_RATIO=1.0,
    FILTER_EMPTY_ANNOTATIONS=True,
)

_SOLVER = dict(
    # WarmupMultiStepLR, WarmupCosineLR or WarmupStepWithFixedGammaLR
    LR_SCHEDULER_NAME="WarmupMultiStepLR",
    MAX_ITER=40000,
    BASE_LR=0.001,
    # where the cosine schedule ends
    BASE_LR_END=0.0,
    MOMENTUM=0.9,
    NESTEROV=False,
    WEIGHT_DECAY=0.0001,
    WEIGHT_DECAY_NORM=0.0,
    BIAS_LR_FACTOR=1.0,
    # None: the same as WEIGHT_DECAY
    WEIGHT_DECAY_BIAS=None,
    GAMMA=0.1,
    STEPS=(30000,),
    # of the fixed-gamma schedule
    NUM_DECAYS=3,
    WARMUP_FACTOR=1.0 / 1000,
    WARMUP_ITERS=1000,
    WARMUP_METHOD="linear",
    # whether the schedule after warm-up is squeezed into what is left, instead of cut at its beginning
    RESCALE_INTERVAL=False,
    CHECKPOINT_PERIOD=5000,
    # images per step over all processes
    IMS_PER_BATCH=16,
    # processes that IMS_PER_BATCH and the schedule were written for; 0: whatever runs
    REFERENCE_WORLD_SIZE=0,
    # CLIP_TYPE: "value" or "norm", each of every parameter by itself
    CLIP_GRADIENTS=dict(ENABLED=False, CLIP_TYPE="value", CLIP_VALUE=1.0, NORM_TYPE=2.0),
    AMP=dict(ENABLED=False),
)

_TEST = dict(
    # [dataset, task, metric, value, tolerance] that an evaluation must reach
    EXPECTED_RESULTS=[],
    # 0: only after training
    EVAL_PERIOD=0,
    KEYPOINT_OKS_SIGMAS=[],
    DETECTIONS_PER_IMAGE=100,
    AUG=dict(ENABLED=False, MIN_SIZES=(400, 500, 600, 700, 800, 900, 1000, 1100, 1200), MAX_SIZE=4000, FLIP=True),
    PRECISE_BN=dict(ENABLED=False, NUM_ITER=200),
)

_C = CN(
    dict(
        VERSION=2,
        MODEL=_MODEL,
        INPUT=_INPUT,
        DATASETS=_DATASETS,
        DATALOADER=_DATALOADER,
        SOLVER=_SOLVER,
        TEST=_TEST,
        OUTPUT_DIR="./output",
        # negative: draw one
        SEED=-1,
        CUDNN_BENCHMARK=False,
        # "", or what torch.set_float32_matmul_precision takes
        FLOAT32_PRECISION="",
        # iterations between drawn training images; 0: never
        VIS_PERIOD=0,
        GLOBAL=dict(HACK=1.0),
    )
)
