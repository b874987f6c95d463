"""Box deltas: what a head predicts to turn one box into another."""

import math

import torch
from torch import Tensor

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
