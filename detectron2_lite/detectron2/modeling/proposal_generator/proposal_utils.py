"""From the boxes that a proposal network predicts to the proposals that a detector works on."""

import math

import torch
from torch import Tensor

from detectron2.layers import batched_nms, cat, move_device_like
from detectron2.structures import Boxes, Instances

# Objectness of ground truth among proposals: as good as certain, and still finite as a logit.
_GROUND_TRUTH_PROBABILITY = 1.0 - 1e-10


def find_top_rpn_proposals(
    proposals: list[Tensor],
    pred_objectness_logits: list[Tensor],
    image_sizes: list[tuple[int, int]],
    nms_thresh: float,
    pre_nms_topk: int,
    post_nms_topk: int,
    min_box_size: float,
    training: bool,
) -> list[Instances]:
    """The best boxes of each level, clipped to the image, that survive non-maximum suppression within their level.

    Args:
        proposals: (B, A, 4) absolute xyxy boxes of each level, with its own A.
        pred_objectness_logits: (B, A) score of each box.
        image_sizes: (height, width) of each image.
        nms_thresh: a box that overlaps a better one of its level by more IoU than this is dropped.
        pre_nms_topk: boxes of each level that enter suppression.
        post_nms_topk: boxes of each image, over all levels, that are returned.
        min_box_size: boxes that, once clipped, are not wider and higher than this many pixels are dropped.
        training: whether boxes or scores that are not finite are an error; otherwise they are dropped.

    Returns:
        `Instances` of each image with `proposal_boxes` and `objectness_logits`, best first.

    Raises:
        FloatingPointError: in training, for boxes or scores that are not finite.
    """
    boxes, scores, levels = _best_of_each_level(proposals, pred_objectness_logits, pre_nms_topk)
    results = []
    for i, image_size in enumerate(image_sizes):
        finite = boxes[i].isfinite().all(dim=1) & scores[i].isfinite()
        if training and not finite.all():
            raise FloatingPointError("Predicted boxes or scores contain Inf/NaN. Training has diverged.")
        found = Instances(image_size, proposal_boxes=Boxes(boxes[i][finite]), objectness_logits=scores[i][finite])
        found.proposal_boxes.clip(image_size)
        large = found.proposal_boxes.nonempty(threshold=min_box_size)
        found = found[large]
        keep = batched_nms(found.proposal_boxes.tensor, found.objectness_logits, levels[finite][large], nms_thresh)
        results.append(found[keep[:post_nms_topk]])
    return results


def _best_of_each_level(
    proposals: list[Tensor], objectness_logits: list[Tensor], topk: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(B, K, 4) boxes, (B, K) scores and (K,) level of the best `topk` of each level."""
    boxes, scores, levels = [], [], []
    for level, (boxes_i, scores_i) in enumerate(zip(proposals, objectness_logits, strict=True)):
        count = boxes_i.shape[1]
        # While tracing, the number is a tensor, so that it stays a part of the graph.
        count = torch.clamp(count, max=topk) if isinstance(count, Tensor) else min(count, topk)
        best_scores, best = scores_i.topk(count, dim=1)
        batch = move_device_like(torch.arange(boxes_i.shape[0]), boxes_i)
        boxes.append(boxes_i[batch[:, None], best])
        scores.append(best_scores)
        levels.append(torch.full_like(best[0], level))
    return cat(boxes, dim=1), cat(scores, dim=1), cat(levels, dim=0)


def add_ground_truth_to_proposals(gt: list[Instances] | list[Boxes], proposals: list[Instances]) -> list[Instances]:
    """Proposals followed by the ground truth of their image, so that a detector in training sees perfect boxes too.

    Args:
        gt: ground truth of each image: `Instances` with `gt_boxes`, or `Boxes`.
        proposals: `Instances` of each image with `proposal_boxes` and `objectness_logits`. Not changed. If they have
            other fields, the ground truth must have these too.
    """
    assert gt is not None
    assert len(proposals) == len(gt), f"{len(proposals)} images with proposals, {len(gt)} with ground truth"
    return [add_ground_truth_to_proposals_single_image(g, p) for g, p in zip(gt, proposals, strict=True)]


def add_ground_truth_to_proposals_single_image(gt: Instances | Boxes, proposals: Instances) -> Instances:
    """`add_ground_truth_to_proposals` for one image."""
    if isinstance(gt, Boxes):
        gt = Instances(proposals.image_size, gt_boxes=gt)
    gt_proposals = Instances(proposals.image_size, **gt.get_fields())
    gt_proposals.proposal_boxes = gt.gt_boxes
    logit = math.log(_GROUND_TRUTH_PROBABILITY / (1 - _GROUND_TRUTH_PROBABILITY))
    gt_proposals.objectness_logits = torch.full((len(gt),), logit, device=gt.gt_boxes.device)
    for name in proposals.get_fields():
        assert gt_proposals.has(name), f"The attribute '{name}' in `proposals` does not exist in `gt`"
    return Instances.cat([proposals, gt_proposals])
