"""Sparse R-CNN under MMDetection's names, https://github.com/open-mmlab/mmdetection, configs/sparse_rcnn/.

The two implementations agree in everything but names: order of coordinates and deltas, layout of the generated
matrices, level of a box, normalization of images.
"""

from collections.abc import Mapping

from torch import Tensor

from ..errors import InputError
from .names import COUNTER, Rule, filled, renamed, some
from .resnet import RESNET_RULES

HEAD = r"head\.head_series\.(\d+)\."
THEIR_HEAD = r"roi_head.bbox_head.\1."
# Modules of a refinement stage, ours and theirs.
STAGE = {
    r"self_attn\.": "attention.attn.",
    r"inst_interact\.dynamic_layer\.": "instance_interactive_conv.dynamic_layer.",
    r"inst_interact\.norm1\.": "instance_interactive_conv.norm_in.",
    r"inst_interact\.norm2\.": "instance_interactive_conv.norm_out.",
    r"inst_interact\.out_layer\.": "instance_interactive_conv.fc_layer.",
    r"inst_interact\.norm3\.": "instance_interactive_conv.fc_norm.",
    r"norm1\.": "attention_norm.",
    r"norm2\.": "instance_interactive_conv_norm.",
    r"norm3\.": "ffn_norm.",
    r"linear1\.": "ffn.layers.0.0.",
    r"linear2\.": "ffn.layers.1.",
    r"cls_module\.": "cls_fcs.",
    r"reg_module\.": "reg_fcs.",
    r"class_logits\.": "fc_cls.",
    r"bboxes_delta\.": "fc_reg.",
}
RULES: list[Rule] = [
    ("init_proposal_features\\.", "rpn_head.init_proposal_features."),
    ("init_proposal_boxes\\.", "rpn_head.init_proposal_bboxes."),
    (r"backbone\.fpn_lateral(\d)\.", lambda m: f"neck.lateral_convs.{int(m[1]) - 2}.conv."),
    (r"backbone\.fpn_output(\d)\.", lambda m: f"neck.fpn_convs.{int(m[1]) - 2}.conv."),
    *((HEAD + ours, THEIR_HEAD + theirs) for ours, theirs in STAGE.items()),
]
BOTTOM_UP = "backbone.bottom_up."


def from_mmdet(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the tensors of MMDetection's Sparse R-CNN the names that they have here.

    Args:
        theirs: state dict of a checkpoint of one of its sparse-rcnn_* configs.
        ours: state dict of the model to fill: ResNet, detectron2's FPN on p2 to p5, and the published head.

    Raises:
        InputError: `theirs` has not all of the model's tensors, or more of them.
    """
    state = filled(theirs, ours, _their_name)
    used = {_their_name(name) for name in ours}
    if more := [name for name in theirs if name not in used and not name.endswith(COUNTER)]:
        raise InputError(f"these weights have {some(more)}, which the model of the config has not")
    return state


def to_mmdet(ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the tensors of a Sparse R-CNN with ResNet and detectron2's FPN MMDetection's names.

    Raises:
        InputError: a tensor has no counterpart there.
    """
    state = {_their_name(name): x for name, x in ours.items()}
    if foreign := [name for name in ours if _their_name(name) == name]:
        raise InputError(f"MMDetection's Sparse R-CNN has no {some(foreign)}: the model must be as published")
    return state


def _their_name(name: str) -> str:
    if name.startswith(BOTTOM_UP):
        return "backbone." + renamed(name.removeprefix(BOTTOM_UP), RESNET_RULES)
    return renamed(name, RULES)
