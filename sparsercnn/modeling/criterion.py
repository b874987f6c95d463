"""The set loss of Sparse R-CNN: focal class loss, L1 and GIoU on one-to-one matched pairs, at every stage.

Sun et al., Sparse R-CNN: End-to-End Object Detection with Learnable Proposals, CVPR 2021, section 3.3.
"""

import torch
import torch.distributed as dist
from detectron2.config import CfgNode, configurable
from detectron2.structures import Instances
from detectron2.utils import comm
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor, nn
from torch.nn import functional as F

from .boxes import generalized_iou, image_whwh
from .matcher import Assignment, HungarianMatcher


class SetCriterion(nn.Module):
    """Weighted losses of all stages, each divided by the number of objects averaged over processes (at least 1).

    The cross entropy of the softmax variant is a weighted mean over proposals instead. An image without objects has no
    pairs: all of its proposals learn background, and it adds nothing to the losses of boxes.

    Args:
        num_classes: K, the classes of objects.
        matcher: pairs proposals with objects.
        class_weight, l1_weight, giou_weight: weights of the three losses.
        use_focal: sigmoid focal loss on K logits rather than cross entropy on K + 1.
        alpha: weight of an object's class in the focal loss, against 1 − alpha for background.
        gamma: exponent of the factor (1 − p_t), which plays down easy examples in the focal loss.
        no_object_weight: weight of the class "no object" in the cross entropy.
        deep_supervision: supervise every stage, not only the last.
    """

    empty_weight: Tensor

    @configurable
    def __init__(
        self,
        *,
        num_classes: int,
        matcher: HungarianMatcher,
        class_weight: float = 2.0,
        l1_weight: float = 5.0,
        giou_weight: float = 2.0,
        use_focal: bool = True,
        alpha: float = 0.25,
        gamma: float = 2.0,
        no_object_weight: float = 0.1,
        deep_supervision: bool = True,
    ):
        super().__init__()
        self.num_classes = num_classes
        self.matcher = matcher
        self.weights = {"loss_ce": class_weight, "loss_bbox": l1_weight, "loss_giou": giou_weight}
        self.use_focal = use_focal
        self.alpha = alpha
        self.gamma = gamma
        self.deep_supervision = deep_supervision
        if not use_focal:
            empty_weight = torch.ones(num_classes + 1)
            empty_weight[-1] = no_object_weight
            self.register_buffer("empty_weight", empty_weight)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        node = cfg.MODEL.SparseRCNN
        return {
            "num_classes": node.NUM_CLASSES,
            "matcher": HungarianMatcher(cfg),
            "class_weight": node.CLASS_WEIGHT,
            "l1_weight": node.L1_WEIGHT,
            "giou_weight": node.GIOU_WEIGHT,
            "use_focal": node.USE_FOCAL,
            "alpha": node.ALPHA,
            "gamma": node.GAMMA,
            "no_object_weight": node.NO_OBJECT_WEIGHT,
            "deep_supervision": node.DEEP_SUPERVISION,
        }

    def forward(self, logits: Tensor, boxes: Tensor, targets: list[Instances]) -> dict[str, Tensor]:
        """Compute the weighted losses of every stage.

        Args:
            logits: (S, B, N, K), or K + 1 for the softmax variant.
            boxes: (S, B, N, 4) absolute xyxy.
            targets: B `Instances` with `gt_boxes` and `gt_classes`.

        Returns:
            Weighted losses: `loss_ce`, `loss_bbox`, `loss_giou` of the last stage, the same with `_0`, `_1`, … of the
            earlier ones.
        """
        if not self.deep_supervision:
            logits, boxes = logits[-1:], boxes[-1:]
        # Losses are sums of many small numbers, too fine for half precision.
        logits, boxes = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (logits, boxes))
        counts = [len(t) for t in targets]
        pairs = _flatten(self.matcher(logits, boxes, targets), counts).to(boxes.device, non_blocking=True)
        num_boxes = _average_over_processes(sum(counts), boxes.device)

        losses = {"loss_ce": self._class_loss(logits, targets, pairs, num_boxes)}
        losses |= self._box_losses(boxes, targets, pairs, num_boxes)
        last = len(logits) - 1
        return {
            name if stage == last else f"{name}_{stage}": self.weights[name] * loss
            for name, per_stage in losses.items()
            for stage, loss in enumerate(per_stage.unbind())
        }

    def _class_loss(self, logits: Tensor, targets: list[Instances], pairs: Tensor, num_boxes: Tensor) -> Tensor:
        """(S,) class loss; a proposal without an object is background."""
        classes = torch.cat([t.gt_classes for t in targets]).to(logits.device)
        stage, image, proposal, target = pairs
        if self.use_focal:
            labels = torch.zeros_like(logits)
            labels[stage, image, proposal, classes[target]] = 1
            loss = sigmoid_focal_loss(logits, labels, alpha=self.alpha, gamma=self.gamma)
            return loss.sum((1, 2, 3)) / num_boxes
        labels = torch.full(logits.shape[:3], self.num_classes, device=logits.device)
        labels[stage, image, proposal] = classes[target]
        stages = zip(logits.flatten(1, 2), labels.flatten(1), strict=True)
        return torch.stack([F.cross_entropy(x, y, self.empty_weight.to(x.dtype)) for x, y in stages])

    def _box_losses(
        self, boxes: Tensor, targets: list[Instances], pairs: Tensor, num_boxes: Tensor
    ) -> dict[str, Tensor]:
        """(S,) L1 loss on boxes normalized by the image size, and (S,) GIoU loss, over matched pairs."""
        stage, image, proposal, target = pairs
        matched = boxes[stage, image, proposal]
        truth = torch.cat([t.gt_boxes.tensor for t in targets]).to(boxes)[target]
        image_size = image_whwh([t.image_size for t in targets], boxes)[image]
        l1 = F.l1_loss(matched / image_size, truth / image_size, reduction="none").sum(-1)
        giou = 1 - generalized_iou(matched, truth)
        # Every stage has the same number of pairs, so that the flat list folds into rows.
        l1, giou = (loss.view(len(boxes), -1).sum(1) / num_boxes for loss in (l1, giou))
        return {"loss_bbox": l1, "loss_giou": giou}


def _flatten(assignment: Assignment, counts: list[int]) -> Tensor:
    """(4, P) stage, image, proposal and target index of every pair; target indices count on through the batch."""
    columns = []
    for stage, images in enumerate(assignment):
        first_target = 0
        for image, (proposal, target) in enumerate(images):
            where = proposal.new_tensor([[stage], [image]]).expand(2, len(proposal))
            columns.append(torch.cat([where, torch.stack([proposal, target + first_target])]))
            first_target += counts[image]
    return torch.cat(columns, dim=1)


def _average_over_processes(count: int, device: torch.device) -> Tensor:
    """Objects per process, at least 1: the divisor of the losses."""
    total = torch.full((), float(count), device=device)
    if comm.get_world_size() > 1:
        dist.all_reduce(total)
    return (total / comm.get_world_size()).clamp(min=1)
