"""An EfficientDet small enough for unit tests, and batches for it."""

import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances

from efficientdet import EfficientDet
from sparsercnn import load_config
from sparsercnn.engine import build_model

OPTIONS = """
MODEL.META_ARCHITECTURE EfficientDet MODEL.DEVICE cpu MODEL.BACKBONE.NAME build_neck_backbone
MODEL.BACKBONE.FREEZE_AT 0 MODEL.RESNETS.DEPTH 18 MODEL.RESNETS.RES2_OUT_CHANNELS 64 MODEL.RESNETS.NORM BN
MODEL.RESNETS.OUT_FEATURES ["res2","res3"] MODEL.NECK.IN_FEATURES ["res2","res3"] MODEL.NECK.NUM_LEVELS 3
MODEL.NECK.NAME BiFPN MODEL.NECK.NORM BN MODEL.NECK.OUT_CHANNELS 16 MODEL.NECK.BIFPN.NUM_LAYERS 1
MODEL.EFFICIENTDET.IN_FEATURES ["p2","p3","p4"] MODEL.EFFICIENTDET.NUM_CLASSES 3 MODEL.EFFICIENTDET.DEPTH 2
"""


def small_config(*options: object) -> CfgNode:
    """R18 up to res3, BiFPN on p2 to p4 of 16 channels, 3 classes; `options` are KEY VALUE pairs."""
    return load_config(options=[*OPTIONS.split(), *options])


def small_model(*options: object) -> EfficientDet:
    """The small model in evaluation mode, its norms with statistics of their own."""
    torch.manual_seed(0)
    model = build_model(small_config(*options))
    for module in model.modules():
        if getattr(module, "running_var", None) is not None:
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.normal_(module.running_mean, std=0.2)
    return model.eval()


def image(size: tuple[int, int], seed: int = 0) -> torch.Tensor:
    return torch.randint(256, (3, *size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def targets(size: tuple[int, int]) -> Instances:
    """A box of class 0 and one of class 2."""
    boxes = torch.tensor([[4.0, 4, 40, 50], [10, 20, 30, 60]])
    return Instances(size, gt_boxes=Boxes(boxes), gt_classes=torch.tensor([0, 2]))


def training_batch() -> list[dict]:
    """An image with two objects and one without any."""
    size = (64, 96)
    nothing = Instances(size, gt_boxes=Boxes(torch.zeros(0, 4)), gt_classes=torch.zeros(0, dtype=torch.int64))
    return [{"image": image(size, 0), "instances": targets(size)}, {"image": image(size, 1), "instances": nothing}]
