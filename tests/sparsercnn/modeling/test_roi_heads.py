"""The RoI heads that read the pyramid as MODEL.ROI_ROUTING says."""

import pytest
import torch
from detectron2.modeling import StandardROIHeads, build_roi_heads
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from torch.testing import assert_close

from sparsercnn import RoutedROIHeads, load_config
from sparsercnn.engine import build_model
from sparsercnn.errors import InputError

OPTIONS = """
MODEL.META_ARCHITECTURE GeneralizedRCNN MODEL.DEVICE cpu MODEL.BACKBONE.NAME build_resnet_fpn_backbone
MODEL.RESNETS.DEPTH 18 MODEL.RESNETS.RES2_OUT_CHANNELS 64 MODEL.RESNETS.OUT_FEATURES ["res2","res3"]
MODEL.FPN.IN_FEATURES ["res2","res3"] MODEL.FPN.OUT_CHANNELS 8 MODEL.RPN.IN_FEATURES ["p2","p3"]
MODEL.ANCHOR_GENERATOR.SIZES [[16],[32]] MODEL.ROI_HEADS.NAME RoutedROIHeads MODEL.ROI_HEADS.IN_FEATURES ["p2","p3"]
MODEL.ROI_HEADS.NUM_CLASSES 3 MODEL.ROI_BOX_HEAD.NAME FastRCNNConvFCHead MODEL.ROI_BOX_HEAD.NUM_FC 1
MODEL.ROI_BOX_HEAD.FC_DIM 16 MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION 7 MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO 2
""".split()


def config(*options):
    return load_config(options=[*OPTIONS, *options])


def build_heads(cfg):
    torch.manual_seed(0)
    model = build_model(cfg)
    return build_roi_heads(cfg, model.backbone.output_shape())


@pytest.fixture
def features():
    generator = torch.Generator().manual_seed(0)
    return {"p2": torch.randn(3, 8, 64, 64, generator=generator), "p3": torch.randn(3, 8, 32, 32, generator=generator)}


@pytest.fixture
def boxes():
    """Different numbers of boxes in three images, none in the second."""
    first = torch.tensor([[0.0, 0, 30, 40], [8, 8, 250, 200], [100, 3, 180, 90]])
    return [Boxes(first), Boxes(torch.empty(0, 4)), Boxes(first[1:] + 2)]


@pytest.mark.parametrize("pooler", ["fused", "ROIPooler"])
def test_level_routing_pools_what_detectron2_pools(features, boxes, pooler):
    routed = build_heads(config("MODEL.ROI_ROUTING.POOLER", pooler))
    plain = build_heads(config("MODEL.ROI_HEADS.NAME", "StandardROIHeads"))
    assert isinstance(routed, RoutedROIHeads) and type(plain) is StandardROIHeads
    maps = list(features.values())
    assert_close(routed.box_pooler(maps, boxes), plain.box_pooler(maps, boxes), rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["adaptive", "soft"])
def test_boxes_read_all_levels_and_the_routing_learns(features, boxes, mode):
    heads = build_heads(config("MODEL.ROI_ROUTING.MODE", mode)).train()
    images = ImageList(torch.zeros(3, 3, 256, 256), [(256, 256)] * 3)
    proposals, targets = [], []
    for b in boxes:
        proposals.append(Instances((256, 256), proposal_boxes=b, objectness_logits=torch.zeros(len(b))))
        targets.append(Instances((256, 256), gt_boxes=b, gt_classes=torch.zeros(len(b), dtype=torch.int64)))
    for level in features.values():
        level.requires_grad_()
    with EventStorage():
        _, losses = heads(images, features, proposals, targets)
    sum(losses.values()).backward()
    assert all(level.grad.abs().sum() > 0 for level in features.values())
    assert all(p.grad is not None for p in heads.box_pooler.parameters())
    assert len(list(heads.box_pooler.parameters())) > 0


def test_weights_of_standard_heads_fit():
    plain = build_heads(config("MODEL.ROI_HEADS.NAME", "StandardROIHeads"))
    build_heads(config()).load_state_dict(plain.state_dict())


def test_a_mode_that_nothing_reads_is_a_mistake():
    with pytest.raises(InputError, match="RoutedROIHeads"):
        build_model(config("MODEL.ROI_HEADS.NAME", "StandardROIHeads", "MODEL.ROI_ROUTING.MODE", "soft"))


def test_the_adaptive_sampling_ratio_of_detectron2_needs_its_pooler():
    with pytest.raises(InputError, match="ROIPooler"):
        build_model(config("MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO", "0"))
