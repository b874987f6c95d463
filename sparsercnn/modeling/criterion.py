"""The set loss of Sparse R-CNN: class loss, L1 and GIoU on matched pairs, at every stage.

Sun et al., Sparse R-CNN: End-to-End Object Detection with Learnable Proposals, CVPR 2021, section 3.3.
"""

import torch
import torch.distributed as dist
from detectron2.config import CfgNode, configurable
from detectron2.structures import Instances
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn import functional as F

from .boxes import generalized_iou, image_whwh, paired_iou
from .class_loss import ClassLoss, FocalLoss, build_class_loss
from .matcher import Assignment, HungarianMatcher, build_matcher


class SetCriterion(nn.Module):
    """Weighted losses of all stages, each divided by the number of objects averaged over processes (at least 1).

    The cross entropy of the softmax variant is a weighted mean over proposals instead. An image without objects has no
    pairs: all of its proposals learn background, and it adds nothing to the losses of boxes.

    Args:
        num_classes: K, the classes of objects.
        matcher: pairs proposals with objects.
        class_weight, l1_weight, giou_weight: weights of the three losses.
        use_focal: `class_loss` on K sigmoid logits rather than cross entropy on K + 1.
        class_loss: of each logit and its label; the focal loss by default.
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
        class_loss: ClassLoss | None = None,
        no_object_weight: float = 0.1,
        deep_supervision: bool = True,
    ):
        super().__init__()
        self.num_classes = num_classes
        self.matcher = matcher
        self.weights = {"loss_ce": class_weight, "loss_bbox": l1_weight, "loss_giou": giou_weight}
        self.use_focal = use_focal
        self.class_loss = class_loss or FocalLoss()
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
            "matcher": build_matcher(cfg),
            "class_weight": node.CLASS_WEIGHT,
            "l1_weight": node.L1_WEIGHT,
            "giou_weight": node.GIOU_WEIGHT,
            "use_focal": node.USE_FOCAL,
            "class_loss": build_class_loss(cfg),
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
        logits, boxes = self.supervised(logits, boxes)
        counts = [len(t) for t in targets]
        pairs = _flatten(self.matcher(logits, boxes, targets), counts)
        return self.losses_of_pairs(logits, boxes, targets, pairs)

    def supervised(self, logits: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and boxes, (S, …) each, of the stages that are supervised, in the precision that losses need."""
        first = 0 if self.deep_supervision else len(logits) - 1
        # Losses are sums of many small numbers, too fine for half precision.
        logits, boxes = (t[first:].to(torch.promote_types(t.dtype, torch.float32)) for t in (logits, boxes))
        return logits, boxes

    def losses_of_pairs(
        self,
        logits: Tensor,
        boxes: Tensor,
        targets: list[Instances],
        pairs: Tensor,
        copies: int = 1,
        present: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Compute the weighted losses of pairs that are known.

        Args:
            logits, boxes: as `supervised` returns them.
            targets: B `Instances` with `gt_boxes` and `gt_classes`.
            pairs: (4, P) on the CPU: stage, image, proposal and object of each, ordered by stage; objects count on
                through the batch.
            copies: pairs of each object, by which the losses are divided.
            present: (B, N) bool, proposals that learn a class; None for all, as it must be for the softmax variant.

        Returns:
            As `forward` does.
        """
        num_boxes = copies * _average_over_processes(sum(len(t) for t in targets), boxes.device)
        pairs_of_stages = pairs[0].bincount(minlength=len(boxes)).tolist()
        pairs = pairs.to(boxes.device, non_blocking=True)
        stage, image, proposal, target = pairs
        matched = boxes[stage, image, proposal]
        truth = torch.cat([t.gt_boxes.tensor for t in targets]).to(boxes)[target]
        classes = torch.cat([t.gt_classes for t in targets]).to(logits.device)[target]
        image_size = image_whwh([t.image_size for t in targets], boxes)[image]

        losses = {"loss_ce": self._class_loss(logits, pairs[:3], classes, paired_iou(matched.detach(), truth), present)}
        if self.use_focal:
            losses["loss_ce"] = losses["loss_ce"] / num_boxes
        per_pair = {
            "loss_bbox": F.l1_loss(matched / image_size, truth / image_size, reduction="none").sum(-1),
            "loss_giou": 1 - generalized_iou(matched, truth),
        }
        for name, loss in per_pair.items():
            rows = nn.utils.rnn.pad_sequence(loss.split(pairs_of_stages), batch_first=True)
            losses[name] = rows.sum(1) / num_boxes
        last = len(logits) - 1
        return {
            name if stage == last else f"{name}_{stage}": self.weights[name] * loss
            for name, per_stage in losses.items()
            for stage, loss in enumerate(per_stage.unbind())
        }

    def _class_loss(
        self, logits: Tensor, pairs: Tensor, classes: Tensor, overlaps: Tensor, present: Tensor | None
    ) -> Tensor:
        """(S,) class loss, a sum for `use_focal`, else a mean; a proposal without an object is background.

        Args:
            logits: (S, B, N, K), or K + 1 for the softmax variant.
            pairs: (3, P) stage, image and proposal of each pair.
            classes, overlaps: (P,) class of its object, and IoU with it.
            present: (B, N) bool, proposals that learn; None for all.
        """
        stage, image, proposal = pairs
        if self.use_focal:
            labels, quality = torch.zeros_like(logits), torch.zeros_like(logits)
            labels[stage, image, proposal, classes] = 1
            quality[stage, image, proposal, classes] = overlaps.to(quality.dtype)
            loss = self.class_loss(logits, labels, quality)
            if present is not None:
                loss = loss * present[:, :, None]
            return loss.sum((1, 2, 3))
        labels = torch.full(logits.shape[:3], self.num_classes, device=logits.device)
        labels[stage, image, proposal] = classes
        stages = zip(logits.flatten(1, 2), labels.flatten(1), strict=True)
        return torch.stack([F.cross_entropy(x, y, self.empty_weight.to(x.dtype)) for x, y in stages])


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
