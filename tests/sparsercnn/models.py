"""A Sparse R-CNN small enough for unit tests."""

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from sparsercnn import SparseRCNN, load_config


def small_config(use_focal: bool = True) -> CfgNode:
    """R18-FPN, 32 channels, 2 stages, 10 proposals, 3 classes."""
    cfg = load_config()
    cfg.MODEL.META_ARCHITECTURE = "SparseRCNN"
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    node = cfg.MODEL.SparseRCNN
    node.USE_FOCAL = use_focal
    node.HIDDEN_DIM, node.DIM_FEEDFORWARD, node.DIM_DYNAMIC, node.NHEADS = 32, 64, 8, 4
    node.NUM_HEADS, node.NUM_PROPOSALS, node.NUM_CLASSES = 2, 10, 3
    return cfg


def small_model(use_focal: bool = True, seed: int = 0) -> SparseRCNN:
    torch.manual_seed(seed)
    return build_model(small_config(use_focal)).eval()


def image(size: tuple[int, int], seed: int = 0) -> torch.Tensor:
    return torch.randint(256, (3, *size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
