"""Assignment of proposals to objects, one to one in every stage or several to one in all but the last.

Sun et al., Sparse R-CNN: End-to-End Object Detection with Learnable Proposals, CVPR 2021, section 3.3;
Carion et al., End-to-End Object Detection with Transformers, ECCV 2020, section 3.1.
"""

from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.structures import Instances
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from ..errors import check_choice
from .boxes import generalized_iou, image_whwh, paired_iou

Assignment = list[list[tuple[Tensor, Tensor]]]

# From here on it takes less time to look for the cheapest proposals first.
MANY_PROPOSALS = 2000


class HungarianMatcher(nn.Module):
    """Matches each object to a proposal so that class cost, L1 and −GIoU add up to the least, each stage on its own.

    Costs are computed only between proposals and objects of the same image, for all stages and images at once,
    and reach the host in one transfer.

    Args:
        class_weight, l1_weight, giou_weight: weights of the three costs.
        use_focal: logits are K sigmoids (focal cost) rather than a softmax over K + 1 classes.
        alpha: weight of an object's class in the focal cost, against 1 − alpha for background.
        gamma: exponent of the factor (1 − p_t), which plays down easy examples in the focal cost.
    """

    @configurable
    def __init__(
        self,
        *,
        class_weight: float = 2.0,
        l1_weight: float = 5.0,
        giou_weight: float = 2.0,
        use_focal: bool = True,
        alpha: float = 0.25,
        gamma: float = 2.0,
    ):
        super().__init__()
        self.class_weight = class_weight
        self.l1_weight = l1_weight
        self.giou_weight = giou_weight
        self.use_focal = use_focal
        self.alpha = alpha
        self.gamma = gamma

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        node = cfg.MODEL.SparseRCNN
        return {
            "class_weight": node.CLASS_WEIGHT,
            "l1_weight": node.L1_WEIGHT,
            "giou_weight": node.GIOU_WEIGHT,
            "use_focal": node.USE_FOCAL,
            "alpha": node.ALPHA,
            "gamma": node.GAMMA,
        }

    @torch.no_grad()
    def forward(self, logits: Tensor, boxes: Tensor, targets: list[Instances]) -> Assignment:
        """Pair proposals with objects, each stage on its own.

        Args:
            logits: (S, B, N, K), or K + 1 for the softmax variant.
            boxes: (S, B, N, 4) absolute xyxy.
            targets: B `Instances` with `gt_boxes` and `gt_classes`.

        Returns:
            For each stage, for each image, (proposal_index, target_index): int64 on the CPU, both of length
            min(N, number of objects), proposals ascending.

        Raises:
            FloatingPointError: the predictions hold NaN, infinity or boxes turned inside out, so that no assignment
                exists.
        """
        counts = [len(t) for t in targets]
        if max(counts) == 0:
            none = torch.empty(0, dtype=torch.int64)
            return [[(none, none) for _ in targets] for _ in logits]
        costs = self.costs(logits, boxes, targets).float().cpu().numpy()
        shares = self.shares(boxes, targets).cpu().numpy()
        return [
            [_assign(costs[s, b, :, :m], shares[s, b, :m]) for b, m in enumerate(counts)] for s in range(len(costs))
        ]

    def shares(self, boxes: Tensor, targets: list[Instances]) -> Tensor:
        """How many proposals each object is to get: (S, B, M) int64, M the largest object count; here one each."""
        most = max(len(t) for t in targets)
        return torch.ones(*boxes.shape[:2], most, dtype=torch.int64, device=boxes.device)

    def costs(self, logits: Tensor, boxes: Tensor, targets: list[Instances]) -> Tensor:
        """Cost of every (proposal, object) pair of an image: (S, B, N, M), M the largest object count, padded."""
        gt_boxes = _pad([t.gt_boxes.tensor for t in targets]).to(boxes)
        gt_classes = _pad([t.gt_classes for t in targets]).to(boxes.device)
        image_size = image_whwh([t.image_size for t in targets], boxes)[:, None]
        boxes = boxes.float()
        # A width below zero would make GIoU unbounded, and an ever better match.
        is_inverted = (boxes[..., 2:] < boxes[..., :2]).any(-1, keepdim=True)
        l1 = torch.cdist((boxes / image_size).flatten(0, 1), (gt_boxes / image_size).repeat(len(boxes), 1, 1), p=1)
        costs = (
            self.class_weight * self._class_cost(logits.float(), gt_classes)
            + self.l1_weight * l1.unflatten(0, boxes.shape[:2])
            - self.giou_weight * generalized_iou(boxes[..., :, None, :], gt_boxes[:, None])
        )
        return costs.masked_fill(is_inverted, torch.nan)

    def _class_cost(self, logits: Tensor, classes: Tensor) -> Tensor:
        """(S, B, N, M): the focal loss of an object's class as foreground minus that as background; or −probability."""
        index = classes[None, :, None].expand(*logits.shape[:3], -1)
        if not self.use_focal:
            return -logits.softmax(-1).gather(-1, index)
        p = logits.gather(-1, index).sigmoid()
        # 1e-8 keeps the logarithms finite.
        positive = self.alpha * (1 - p) ** self.gamma * -(p + 1e-8).log()
        negative = (1 - self.alpha) * p**self.gamma * -(1 - p + 1e-8).log()
        return positive - negative


class DynamicKMatcher(HungarianMatcher):
    """Gives each object k proposals in all stages but the last: those of least optimal-transport cost.

    k = max(1, ⌊sum of its `candidates` best overlaps − `rise` · stages that follow⌋), so that it grows from stage to
    stage as boxes become good. The last stage stays one to one, which is what keeps duplicates out of the results.
    More pairs are more to learn from: with one for each object, most proposals learn background alone.
    Hong et al., Dynamic Sparse R-CNN, CVPR 2022, section 3.2.

    Args:
        candidates: overlaps that are summed up.
        rise: what k gains from a stage to the next.
        last: give the objects of the last stage several proposals too.
        matcher_args: of `HungarianMatcher`.
    """

    @configurable
    def __init__(self, *, candidates: int = 8, rise: float = 0.5, last: bool = False, **matcher_args: Any):
        super().__init__(**matcher_args)
        self.candidates = candidates
        self.rise = rise
        self.last = last

    def shares(self, boxes: Tensor, targets: list[Instances]) -> Tensor:
        gt_boxes = _pad([t.gt_boxes.tensor for t in targets]).to(boxes)
        overlaps = paired_iou(boxes[..., :, None, :], gt_boxes[:, None])  # (S, B, N, M)
        best = overlaps.topk(min(self.candidates, overlaps.shape[2]), dim=2).values.sum(2)
        following = torch.arange(len(boxes) - 1, -1, -1, device=boxes.device)[:, None, None]
        k = (best - self.rise * following).nan_to_num(nan=1).floor().clamp(min=1).long()
        return k if self.last else torch.where(following == 0, 1, k)


def _pad(tensors: list[Tensor]) -> Tensor:
    """(B, M, ...), shorter tensors filled up with zeros."""
    return nn.utils.rnn.pad_sequence(tensors, batch_first=True)


def _assign(cost: np.ndarray, shares: np.ndarray) -> tuple[Tensor, Tensor]:
    """Proposals, ascending, and their objects in the assignment of least cost.

    It is an optimal transport: objects supply whole units, proposals take one at most. So a solution in whole units is
    among the optimal ones, and the Hungarian method finds it with an object for each unit.

    Args:
        cost: (N, M) of the pairs of an image.
        shares: (M,) units that each object supplies; those beyond the first are cut where proposals are too few.
    """
    num_proposals, num_objects = cost.shape
    spare = max(num_proposals - num_objects, 0)
    extra = shares - 1
    if extra.sum() > spare:
        extra = extra * spare // extra.sum()
    units = np.repeat(np.arange(num_objects), extra + 1)
    rows = np.arange(num_proposals)
    if num_proposals > MANY_PROPOSALS and len(units) < num_proposals:
        # With fewer units than proposals, none beyond an object's cheapest can be needed.
        rows = np.unique(np.argpartition(cost, len(units), axis=0)[: len(units)])
    try:
        chosen, columns = linear_sum_assignment(cost[rows][:, units])
    except ValueError as error:
        raise FloatingPointError(
            "Predictions became infinite, NaN, or boxes turned inside out. Lower SOLVER.BASE_LR, lengthen the warm-up, "
            "or train without fp16."
        ) from error
    return torch.from_numpy(rows[chosen]), torch.from_numpy(units[columns])


ASSIGNMENTS: dict[str, type[HungarianMatcher]] = {"one_to_one": HungarianMatcher, "dynamic_k": DynamicKMatcher}


def build_matcher(cfg: CfgNode) -> HungarianMatcher:
    """The matcher that `MODEL.SparseRCNN.ASSIGNMENT` names.

    Raises:
        InputError: the name is unknown.
    """
    name = cfg.MODEL.SparseRCNN.ASSIGNMENT
    check_choice("MODEL.SparseRCNN.ASSIGNMENT", name, ASSIGNMENTS)
    return ASSIGNMENTS[name](cfg)
