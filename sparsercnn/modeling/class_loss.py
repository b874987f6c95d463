"""Losses of class scores: what a score is taught, 1 for the class of an object or how well the box fits it.

A score that tells how well its box fits ranks boxes as average precision does, and sinks a second box on an object.
Each is a function of (..., K) logits, the one-hot labels of the same shape (all zero for background), and the overlaps
(IoU with its object, where the label is 1); it returns the loss of each logit, and no gradient flows to the overlaps.
"""

from dataclasses import dataclass
from typing import Protocol

from detectron2.config import CfgNode
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor
from torch.nn import functional as F

from ..errors import check_choice


class ClassLoss(Protocol):
    """Maps logits, labels and overlaps, all (..., K), to losses (..., K)."""

    def __call__(self, logits: Tensor, labels: Tensor, overlaps: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class FocalLoss:
    """−α (1 − p)^γ log p where the label is 1, −(1 − α) p^γ log(1 − p) elsewhere; overlaps do not matter.

    Lin et al., Focal Loss for Dense Object Detection, ICCV 2017, equation 5.

    Attributes:
        alpha: weight of an object's class, against 1 − alpha for background.
        gamma: exponent of the factor (1 − p_t), which plays down easy examples.
    """

    alpha: float = 0.25
    gamma: float = 2.0

    def __call__(self, logits: Tensor, labels: Tensor, overlaps: Tensor) -> Tensor:
        return sigmoid_focal_loss(logits, labels, alpha=self.alpha, gamma=self.gamma)


@dataclass(frozen=True)
class VarifocalLoss:
    """q · BCE(p, q) where the label is 1 and q is the overlap, −α p^γ log(1 − p) elsewhere.

    Zhang et al., VarifocalNet, CVPR 2021, equation 2.

    Attributes:
        alpha: weight of background.
        gamma: exponent of p, which plays down easy background.
    """

    alpha: float = 0.75
    gamma: float = 2.0

    def __call__(self, logits: Tensor, labels: Tensor, overlaps: Tensor) -> Tensor:
        target = labels * overlaps
        weight = target + self.alpha * logits.detach().sigmoid() ** self.gamma * (1 - labels)
        return weight * F.binary_cross_entropy_with_logits(logits, target, reduction="none")


@dataclass(frozen=True)
class MatchabilityAwareLoss:
    """BCE(p, q^γ) where the label is 1 and q is the overlap, −p^γ log(1 − p) elsewhere.

    Unlike the varifocal loss it has no factor q for objects, so that a confident box of low overlap is corrected too.
    Huang et al., DEIM: DETR with Improved Matching for Fast Convergence, CVPR 2025, equation 3.

    Attributes:
        gamma: exponent of the overlap and of p.
    """

    gamma: float = 1.5

    def __call__(self, logits: Tensor, labels: Tensor, overlaps: Tensor) -> Tensor:
        target = labels * overlaps**self.gamma
        weight = labels + logits.detach().sigmoid() ** self.gamma * (1 - labels)
        return weight * F.binary_cross_entropy_with_logits(logits, target, reduction="none")


CLASS_LOSSES = ("focal", "varifocal", "matchability")


def build_class_loss(cfg: CfgNode) -> ClassLoss:
    """The loss that `MODEL.SparseRCNN.CLASS_LOSS` names.

    Raises:
        InputError: the name is unknown.
    """
    node = cfg.MODEL.SparseRCNN
    check_choice("MODEL.SparseRCNN.CLASS_LOSS", node.CLASS_LOSS, CLASS_LOSSES)
    losses: dict[str, ClassLoss] = {
        "focal": FocalLoss(node.ALPHA, node.GAMMA),
        "varifocal": VarifocalLoss(),
        "matchability": MatchabilityAwareLoss(),
    }
    return losses[node.CLASS_LOSS]
