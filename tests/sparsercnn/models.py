"""A Sparse R-CNN small enough for unit tests, batches for it, and a comparison of how two of them train."""

import torch
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from torch import nn
from torch.testing import assert_close

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


def small_detector(norm: str = "FrozenBN") -> SparseRCNN:
    """The small model in training, its norms with statistics and factors of their own, its first stages frozen."""
    cfg = small_config()
    cfg.MODEL.RESNETS.NORM = norm
    cfg.MODEL.BACKBONE.FREEZE_AT = 2
    torch.manual_seed(0)
    built = build_model(cfg)
    for module in built.modules():
        if isinstance(module, (FrozenBatchNorm2d, nn.BatchNorm2d)):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.normal_(module.bias, std=0.2)
    return built.train()


def training_batch(sizes: tuple[tuple[int, int], ...] = ((64, 96), (80, 64))) -> list[dict]:
    """Two objects in each image."""
    batch = []
    for i, size in enumerate(sizes):
        target = Instances(size)
        target.gt_boxes = Boxes(torch.tensor([[4.0, 4, 40, 50], [10, 20, 30, 60]]))
        target.gt_classes = torch.tensor([0, 2])
        batch.append({"image": image(size, seed=i), "instances": target})
    return batch


def assert_same_training(ours: nn.Module, plain: nn.Module, batch: list[dict] | None = None) -> None:
    """Both, in double precision, have the same losses and the same gradient of every parameter.

    But for the rounding of boxes between stages: detectron2 decodes them in float32, whatever the model's precision.
    """
    losses, gradients = _losses_and_gradients(ours, batch or training_batch())
    expected_losses, expected_gradients = _losses_and_gradients(plain, batch or training_batch())
    assert_close(losses, expected_losses, rtol=1e-5, atol=1e-6)
    assert gradients.keys() == expected_gradients.keys()
    largest = max(g.norm() for g in expected_gradients.values())
    for name, expected in expected_gradients.items():
        assert (gradients[name] - expected).norm() <= 1e-5 * expected.norm() + 1e-8 * largest, name


def _losses_and_gradients(built: nn.Module, batch: list[dict]) -> tuple[dict, dict]:
    losses = built(batch)
    built.zero_grad()
    sum(losses.values()).backward()
    gradients = {name: p.grad for name, p in built.named_parameters() if p.grad is not None}
    return {name: loss.detach() for name, loss in losses.items()}, gradients
