"""A tiny ResNet with levels res2 to res5, and configs of necks on it."""

import pytest
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, ResNet
from torch import nn

from necks import add_neck_config, build_neck_backbone

CHANNELS = (6, 8, 10, 12)


@BACKBONE_REGISTRY.register()
def build_tiny_bottom_up(cfg, input_shape):
    before = (4, *CHANNELS)
    stages = [
        ResNet.make_stage(
            BasicBlock,
            1,
            stride_per_block=[1 if i == 0 else 2],
            in_channels=before[i],
            out_channels=channels,
            norm="BN",
        )
        for i, channels in enumerate(CHANNELS)
    ]
    return ResNet(BasicStem(3, 4, norm="BN"), stages, out_features=[f"res{i + 2}" for i in range(len(CHANNELS))])


@BACKBONE_REGISTRY.register()
def build_strided_patches(cfg, input_shape):
    return StridedPatches()


class StridedPatches(Backbone):
    """Not a ResNet: levels of its own names, and constraints on the padding."""

    def __init__(self):
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 5, 8, stride=8), nn.Conv2d(3, 7, 16, stride=16)

    def forward(self, x):
        return {"fine": self.fine(x), "coarse": self.coarse(x)}

    def output_shape(self):
        return {"fine": ShapeSpec(channels=5, stride=8), "coarse": ShapeSpec(channels=7, stride=16)}

    size_divisibility = 48

    @property
    def padding_constraints(self):
        return {"square_size": 96}


@pytest.fixture
def neck_cfg():
    """Config of the neck `name` on the tiny network; `options` are `MODEL.NECK` keys and values in turn."""

    def make(name: str, *options):
        cfg = get_cfg()
        add_neck_config(cfg)
        neck = {"NAME": name, "BOTTOM_UP": "build_tiny_bottom_up", "OUT_CHANNELS": 16, "NORM": "BN"}
        neck.update(zip(options[::2], options[1::2], strict=True))
        cfg.merge_from_list([x for key, value in neck.items() for x in (f"MODEL.NECK.{key}", value)])
        return cfg

    return make


@pytest.fixture
def build_neck(neck_cfg):
    """Backbone of the neck `name` on the tiny network; `options` as for `neck_cfg`."""

    def build(name: str, *options):
        return build_neck_backbone(neck_cfg(name, *options), ShapeSpec(channels=3))

    return build


@pytest.fixture
def input_shapes():
    """Three levels, res3 to res5, of 6, 8 and 10 channels."""
    return {f"res{level}": ShapeSpec(channels=2 * level, stride=2**level) for level in range(3, 6)}
