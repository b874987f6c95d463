"""One-to-one assignment of proposals to objects.

Sun et al., Sparse R-CNN: End-to-End Object Detection with Learnable Proposals, CVPR 2021, section 3.3;
Carion et al., End-to-End Object Detection with Transformers, ECCV 2020, section 3.1.
"""

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.structures import Instances
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from .boxes import generalized_iou, image_whwh

Assignment = list[list[tuple[Tensor, Tensor]]]


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
        return [[_assign(costs[s, b, :, :m]) for b, m in enumerate(counts)] for s in range(len(costs))]

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


def _pad(tensors: list[Tensor]) -> Tensor:
    """(B, M, ...), shorter tensors filled up with zeros."""
    return nn.utils.rnn.pad_sequence(tensors, batch_first=True)


def _assign(cost: np.ndarray) -> tuple[Tensor, Tensor]:
    """Proposals, ascending, and their objects in the assignment of least cost, from the (N, M) costs of an image."""
    try:
        proposals, objects = linear_sum_assignment(cost)
    except ValueError as error:
        raise FloatingPointError(
            "Predictions became infinite, NaN, or boxes turned inside out. Lower SOLVER.BASE_LR, lengthen the warm-up, "
            "or train without fp16."
        ) from error
    return torch.from_numpy(proposals), torch.from_numpy(objects)
