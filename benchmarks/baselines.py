"""Plain implementations to compare with, in the way the papers describe and the published code works.

Sun et al., Sparse R-CNN: End-to-End Object Detection with Learnable Proposals, CVPR 2021.
"""

import torch
from detectron2.structures import Instances
from fvcore.nn import sigmoid_focal_loss
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou

from sparsercnn import SetCriterion


class PerStageCriterion(nn.Module):
    """Matching and focal set loss, one stage after the other.

    The matching cost of a stage is a matrix between all proposals and all objects of the batch, also across images;
    it moves to the host, once for each stage, and only its blocks on the diagonal are used.

    Args:
        criterion: ours, for the weights and the focal loss's parameters.
    """

    def __init__(self, criterion: SetCriterion):
        super().__init__()
        self.weights = criterion.weights
        self.alpha = criterion.class_loss.alpha
        self.gamma = criterion.class_loss.gamma

    def forward(self, logits: Tensor, boxes: Tensor, targets: list[Instances]) -> dict[str, Tensor]:
        """See `SetCriterion.forward`."""
        losses = {}
        for stage in range(len(logits)):
            suffix = "" if stage == len(logits) - 1 else f"_{stage}"
            pairs = self.match(logits[stage], boxes[stage], targets)
            for name, loss in self._losses(logits[stage], boxes[stage], targets, pairs).items():
                losses[name + suffix] = self.weights[name] * loss
        return losses

    @torch.no_grad()
    def match(self, logits: Tensor, boxes: Tensor, targets: list[Instances]) -> list[tuple[Tensor, Tensor]]:
        """(proposal_index, target_index) of each image, from logits (B, N, K) and boxes (B, N, 4) of one stage."""
        batch, proposals = logits.shape[:2]
        gt_boxes = torch.cat([t.gt_boxes.tensor for t in targets]).to(boxes)
        gt_classes = torch.cat([t.gt_classes for t in targets]).to(boxes.device)
        sizes = _image_sizes(targets, boxes)
        all_boxes = boxes.flatten(0, 1)
        probability = logits.flatten(0, 1).sigmoid()
        positive = self.alpha * (1 - probability) ** self.gamma * -(probability + 1e-8).log()
        negative = (1 - self.alpha) * probability**self.gamma * -(1 - probability + 1e-8).log()
        normalized = all_boxes / sizes.repeat_interleave(proposals, dim=0)
        gt_normalized = gt_boxes / sizes.repeat_interleave(_counts(targets, boxes.device), dim=0)
        cost = (
            self.weights["loss_ce"] * (positive - negative)[:, gt_classes]
            + self.weights["loss_bbox"] * torch.cdist(normalized, gt_normalized, p=1)
            - self.weights["loss_giou"] * generalized_box_iou(all_boxes, gt_boxes)
        )
        blocks = cost.view(batch, proposals, -1).cpu().split([len(t) for t in targets], dim=-1)
        pairs = [linear_sum_assignment(block[i]) for i, block in enumerate(blocks)]
        return [tuple(torch.as_tensor(index, dtype=torch.int64) for index in pair) for pair in pairs]

    def _losses(
        self, logits: Tensor, boxes: Tensor, targets: list[Instances], pairs: list[tuple[Tensor, Tensor]]
    ) -> dict[str, Tensor]:
        num_boxes = max(sum(len(t) for t in targets), 1)
        image = torch.cat([torch.full_like(proposal, i) for i, (proposal, _) in enumerate(pairs)])
        proposal = torch.cat([proposal for proposal, _ in pairs])
        gt_classes = torch.cat([t.gt_classes[index] for t, (_, index) in zip(targets, pairs, strict=True)])
        gt_boxes = torch.cat([t.gt_boxes.tensor[index] for t, (_, index) in zip(targets, pairs, strict=True)])
        labels = torch.full(logits.shape[:2], logits.shape[-1], device=logits.device)
        labels[image, proposal] = gt_classes.to(logits.device)
        one_hot = F.one_hot(labels, logits.shape[-1] + 1)[..., :-1].to(logits)
        matched, gt_boxes = boxes[image, proposal], gt_boxes.to(boxes)
        sizes = _image_sizes(targets, boxes)[image]
        class_loss = sigmoid_focal_loss(logits, one_hot, self.alpha, self.gamma, reduction="sum")
        l1 = F.l1_loss(matched / sizes, gt_boxes / sizes, reduction="sum")
        giou = (1 - generalized_box_iou(matched, gt_boxes).diag()).sum()
        return {"loss_ce": class_loss / num_boxes, "loss_bbox": l1 / num_boxes, "loss_giou": giou / num_boxes}


def _image_sizes(targets: list[Instances], like: Tensor) -> Tensor:
    """(B, 4) width, height, width, height."""
    return like.new_tensor([t.image_size[::-1] * 2 for t in targets])


def _counts(targets: list[Instances], device: torch.device) -> Tensor:
    return torch.tensor([len(t) for t in targets], device=device)


def per_parameter_adamw(model: nn.Module, lr: float, weight_decay: float, max_norm: float) -> torch.optim.Optimizer:
    """AdamW with a group for each parameter, and clipping of the whole model's gradient before each step."""
    groups = [{"params": [p], "lr": lr, "weight_decay": weight_decay} for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(groups, lr)
    parameters = [p for group in groups for p in group["params"]]

    def clip(*_) -> None:
        nn.utils.clip_grad_norm_(parameters, max_norm)

    optimizer.register_step_pre_hook(clip)
    return optimizer
