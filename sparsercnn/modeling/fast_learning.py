"""The parts of Sparse R-CNN that make training need fewer iterations, as a config chooses them (docs/accuracy.md)."""

from typing import Any, cast

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec

from ..errors import InputError, check_choice
from .criterion import SetCriterion
from .denoising import Denoising
from .dense_queries import DenseQueries
from .initial_boxes import INITIAL_BOXES
from .matcher import DynamicKMatcher, HungarianMatcher


def fast_learning(cfg: CfgNode, shapes: dict[str, ShapeSpec]) -> dict[str, Any]:
    """The arguments of `SparseRCNN` that choose where proposals start and what is refined beside them.

    Args:
        cfg: the config of a detector.
        shapes: channels and strides of the backbone's feature maps, by name.

    Raises:
        InputError: an unknown choice of proposals, dense queries or denoising without `USE_FOCAL`, or levels that the
            head does not read.
    """
    node = cfg.MODEL.SparseRCNN
    check_choice("MODEL.SparseRCNN.PROPOSALS", node.PROPOSALS, (*INITIAL_BOXES, "dense"))
    chosen: dict[str, Any] = {}
    for key, is_used in (("PROPOSALS", node.PROPOSALS == "dense"), ("DENOISING_QUERIES", node.DENOISING_QUERIES)):
        if is_used and not node.USE_FOCAL:
            raise InputError(f"MODEL.SparseRCNN.{key} {node[key]} needs USE_FOCAL True")
    if node.DENOISING_QUERIES:
        chosen["denoising"] = Denoising(
            node.NUM_CLASSES, node.HIDDEN_DIM, node.DENOISING_QUERIES, node.BOX_NOISE, node.LABEL_NOISE
        )
    if node.PROPOSALS != "dense":
        return chosen | {"initial_boxes": INITIAL_BOXES[node.PROPOSALS](node.NUM_PROPOSALS)}
    names = node.DENSE_IN_FEATURES or cfg.MODEL.ROI_HEADS.IN_FEATURES
    for name in names:
        check_choice("MODEL.SparseRCNN.DENSE_IN_FEATURES", name, cfg.MODEL.ROI_HEADS.IN_FEATURES)
    matcher = DynamicKMatcher(**HungarianMatcher.from_config(cfg), last=True)
    criterion = SetCriterion(**{**SetCriterion.from_config(cfg), "matcher": matcher})
    strides = [cast(int, shapes[name].stride) for name in names]
    chosen["dense_queries"] = DenseQueries(
        names, strides, node.HIDDEN_DIM, node.NUM_CLASSES, node.NUM_PROPOSALS, criterion, node.PRIOR_PROB
    )
    return chosen
