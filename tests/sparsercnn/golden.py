"""Reference cases of a small head: configuration, inputs and expected outputs."""

from pathlib import Path

import numpy as np
import torch
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, Instances

from sparsercnn import DynamicHead, load_config

GOLDEN = Path(__file__).parents[1] / "golden"
HEAD_CASES = ["head_focal", "head_softmax", "head_focal_empty"]


def load(name: str) -> dict[str, torch.Tensor]:
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return {key: torch.from_numpy(np.asarray(arrays[key])) for key in arrays.files}


def below(case: dict, prefix: str) -> dict[str, torch.Tensor]:
    """Entries of `prefix/…` with the prefix removed."""
    return {key[len(prefix) + 1 :]: value for key, value in case.items() if key.startswith(prefix + "/")}


def head_config(case: dict, use_focal: bool):
    cfg = load_config()
    node = cfg.MODEL.SparseRCNN
    num_logits, node.HIDDEN_DIM = case["weight/head_series.0.class_logits.weight"].shape
    node.USE_FOCAL = use_focal
    node.NUM_CLASSES = num_logits if use_focal else num_logits - 1
    node.NHEADS, node.DIM_FEEDFORWARD, node.DIM_DYNAMIC, node.NUM_HEADS = 4, 64, 8, 3
    node.NUM_CLS, node.NUM_REG = 1, 3
    return cfg


def head_and_inputs(name: str, pooler: str = "fused"):
    """Config, `DynamicHead` with the reference weights, its inputs (features require gradients) and targets."""
    case = load(name)
    cfg = head_config(case, use_focal="softmax" not in name)
    cfg.MODEL.ROI_ROUTING.POOLER = pooler
    shapes = {f"p{k}": ShapeSpec(channels=cfg.MODEL.SparseRCNN.HIDDEN_DIM, stride=2**k) for k in range(2, 6)}
    head = DynamicHead(cfg, shapes)
    head.load_state_dict(below(case, "weight"))
    features = [case[f"input/p{k}"].float().requires_grad_() for k in range(2, 6)]
    inputs = (features, case["input/boxes"], case["input/proposal_features"].clone().requires_grad_())
    targets = []
    for i, size in enumerate(case["input/image_sizes"].tolist()):
        target = Instances(tuple(size))
        target.gt_boxes = Boxes(case[f"target/{i}/boxes_xyxy"])
        target.gt_classes = case[f"target/{i}/classes"]
        targets.append(target)
    return case, cfg, head, inputs, targets
