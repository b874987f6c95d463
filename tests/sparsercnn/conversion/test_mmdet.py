"""Sparse R-CNN under MMDetection's names."""

import json
from pathlib import Path

import pytest
import torch

from sparsercnn.conversion import from_mmdet, to_mmdet
from sparsercnn.errors import InputError

PUBLISHED = Path(__file__).parents[2] / "golden" / "state_dict_r50_300pro.json"


@pytest.fixture(scope="module")
def ours():
    """Names and shapes of the published model; each tensor one number, stretched to its shape."""
    shapes = json.loads(PUBLISHED.read_text())
    return {name: torch.tensor(float(i)).expand(shape) for i, (name, shape) in enumerate(shapes.items())}


def test_a_round_trip_is_the_identity(ours):
    back = from_mmdet(to_mmdet(ours), ours)
    assert back.keys() == ours.keys()
    assert all(torch.equal(back[name], ours[name]) for name in ours)


def test_names_are_those_of_their_checkpoints(ours):
    """As in the checkpoints of configs/sparse_rcnn/ of MMDetection 2 and 3."""
    theirs = to_mmdet(ours)
    assert len(theirs) == len(ours)
    for name, shape in {
        "backbone.conv1.weight": (64, 3, 7, 7),
        "backbone.bn1.running_mean": (64,),
        "backbone.layer1.0.downsample.1.weight": (256,),
        "backbone.layer4.2.conv3.weight": (2048, 512, 1, 1),
        "neck.lateral_convs.0.conv.weight": (256, 256, 1, 1),
        "neck.fpn_convs.3.conv.bias": (256,),
        "rpn_head.init_proposal_bboxes.weight": (300, 4),
        "rpn_head.init_proposal_features.weight": (300, 256),
        "roi_head.bbox_head.0.attention.attn.in_proj_weight": (768, 256),
        "roi_head.bbox_head.0.attention_norm.weight": (256,),
        "roi_head.bbox_head.1.instance_interactive_conv.dynamic_layer.weight": (32768, 256),
        "roi_head.bbox_head.1.instance_interactive_conv.norm_in.weight": (64,),
        "roi_head.bbox_head.1.instance_interactive_conv.fc_layer.weight": (256, 12544),
        "roi_head.bbox_head.1.instance_interactive_conv_norm.bias": (256,),
        "roi_head.bbox_head.2.ffn.layers.0.0.weight": (2048, 256),
        "roi_head.bbox_head.2.ffn.layers.1.weight": (256, 2048),
        "roi_head.bbox_head.2.ffn_norm.weight": (256,),
        "roi_head.bbox_head.5.cls_fcs.0.weight": (256, 256),
        "roi_head.bbox_head.5.reg_fcs.7.bias": (256,),
        "roi_head.bbox_head.5.fc_cls.weight": (80, 256),
        "roi_head.bbox_head.5.fc_reg.bias": (4,),
    }.items():
        assert theirs[name].shape == shape, name


def test_counters_of_batch_norms_are_no_matter(ours):
    theirs = {**to_mmdet(ours), "backbone.bn1.num_batches_tracked": torch.tensor(3)}
    assert from_mmdet(theirs, ours).keys() == ours.keys()


def test_other_models_are_refused(ours):
    with pytest.raises(InputError, match="lack .*they are of another model"):
        from_mmdet({}, ours)
    with pytest.raises(InputError, match="these weights have mask_head.conv, which the model of the config has not"):
        from_mmdet({**to_mmdet(ours), "mask_head.conv": torch.zeros(1)}, ours)
    with pytest.raises(InputError, match="has no backbone.neck.lateral: the model must be as published"):
        to_mmdet({**ours, "backbone.neck.lateral": torch.zeros(1)})
