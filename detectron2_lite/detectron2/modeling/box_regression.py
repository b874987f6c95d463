"""Box deltas: what a head predicts to turn one box into another, and the losses of them."""

import math
from types import EllipsisType

import torch
from fvcore.nn import giou_loss, smooth_l1_loss
from torch import Tensor

from detectron2.layers import cat, ciou_loss, diou_loss
from detectron2.structures import Boxes

# Keeps exp(dw) finite: no box grows more than from a stride of 16 to 1000 pixels.
_DEFAULT_SCALE_CLAMP = math.log(1000.0 / 16)

__all__ = ["Box2BoxTransform"]


class Box2BoxTransform:
    """Deltas (dx, dy, dw, dh): center shift relative to the size, and log of the size ratio.

    Girshick et al., Rich Feature Hierarchies for Accurate Object Detection, CVPR 2014, appendix C.

    Args:
        weights: the four deltas are multiplied by these, so that training targets have about unit variance.
        scale_clamp: upper limit of dw and dh after division by the weights.
    """

    def __init__(self, weights: tuple[float, float, float, float], scale_clamp: float = _DEFAULT_SCALE_CLAMP) -> None:
        self.weights = weights
        self.scale_clamp = scale_clamp

    def get_deltas(self, src_boxes: Tensor, target_boxes: Tensor) -> Tensor:
        """Deltas that turn source into target boxes: target == apply_deltas(deltas, src).

        Args:
            src_boxes: (N, 4) xyxy with positive width.
            target_boxes: (N, 4) xyxy.

        Returns:
            (N, 4).
        """
        assert isinstance(src_boxes, Tensor), type(src_boxes)
        assert isinstance(target_boxes, Tensor), type(target_boxes)
        src_sizes = src_boxes[:, 2:] - src_boxes[:, :2]
        assert (src_sizes[:, 0] > 0).all().item(), "Input boxes to Box2BoxTransform are not valid!"
        src_centers = src_boxes[:, :2] + 0.5 * src_sizes
        target_sizes = target_boxes[:, 2:] - target_boxes[:, :2]
        target_centers = target_boxes[:, :2] + 0.5 * target_sizes

        wx, wy, ww, wh = self.weights
        shift = (target_centers - src_centers) / src_sizes
        log_ratio = torch.log(target_sizes / src_sizes)
        return torch.stack((wx * shift[:, 0], wy * shift[:, 1], ww * log_ratio[:, 0], wh * log_ratio[:, 1]), dim=1)

    def apply_deltas(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """Transform boxes by deltas.

        Args:
            deltas: (N, k * 4), k sets of deltas (for example one per class) for each box.
            boxes: (N, 4) xyxy.

        Returns:
            (N, k * 4) xyxy, at least float32.
        """
        deltas = deltas.float()  # exp of a half-precision delta overflows
        boxes = boxes.to(deltas.dtype)
        widths = boxes[:, 2] - boxes[:, 0]
        heights = boxes[:, 3] - boxes[:, 1]
        center_x = boxes[:, 0] + 0.5 * widths
        center_y = boxes[:, 1] + 0.5 * heights

        wx, wy, ww, wh = self.weights
        dx = deltas[:, 0::4] / wx
        dy = deltas[:, 1::4] / wy
        dw = torch.clamp(deltas[:, 2::4] / ww, max=self.scale_clamp)
        dh = torch.clamp(deltas[:, 3::4] / wh, max=self.scale_clamp)

        x = dx * widths[:, None] + center_x[:, None]
        y = dy * heights[:, None] + center_y[:, None]
        half_w = 0.5 * torch.exp(dw) * widths[:, None]
        half_h = 0.5 * torch.exp(dh) * heights[:, None]
        return torch.stack((x - half_w, y - half_h, x + half_w, y + half_h), dim=-1).reshape(deltas.shape)


# Losses that compare boxes, not deltas.
_BOX_LOSSES = {"giou": giou_loss, "diou": diou_loss, "ciou": ciou_loss}


def _dense_box_regression_loss(
    anchors: list[Boxes | Tensor],
    box2box_transform: Box2BoxTransform,
    pred_anchor_deltas: list[Tensor],
    gt_boxes: list[Tensor],
    fg_mask: Tensor | EllipsisType,
    box_reg_loss_type: str = "smooth_l1",
    smooth_l1_beta: float = 0.0,
) -> Tensor:
    """Sum of the regression losses of the boxes that have an object to regress to.

    Args:
        anchors: absolute boxes of each level, the same for all images; R in all.
        box2box_transform: from anchors and deltas to boxes.
        pred_anchor_deltas: (B, R_i, 4) of each level.
        gt_boxes: (R, 4) absolute xyxy of each of B images.
        fg_mask: (B, R) bool, which boxes count; `...` for all.
        box_reg_loss_type: "smooth_l1" compares deltas; "giou", "diou" and "ciou" compare boxes.
        smooth_l1_beta: difference at which smooth L1 turns from quadratic to linear; 0 is plain L1.

    Raises:
        ValueError: for another `box_reg_loss_type`.
    """
    source = type(anchors[0]).cat(anchors).tensor if isinstance(anchors[0], Boxes) else cat(anchors)
    deltas = cat(pred_anchor_deltas, dim=1)
    if box_reg_loss_type == "smooth_l1":
        targets = torch.stack([box2box_transform.get_deltas(source, boxes) for boxes in gt_boxes])
        return smooth_l1_loss(deltas[fg_mask], targets[fg_mask], beta=smooth_l1_beta, reduction="sum")
    if box_reg_loss_type in _BOX_LOSSES:
        boxes = torch.stack([box2box_transform.apply_deltas(image_deltas, source) for image_deltas in deltas])
        return _BOX_LOSSES[box_reg_loss_type](boxes[fg_mask], torch.stack(gt_boxes)[fg_mask], reduction="sum")
    raise ValueError(f"Invalid dense box regression loss type '{box_reg_loss_type}'")
