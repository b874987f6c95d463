"""A detector as a function of tensors, which is what can be exported."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..modeling.boxes import image_whwh
from ..modeling.detector import SparseRCNN
from .pooling import ExportablePooler


class DetectionGraph(nn.Module):
    """From pictures as a decoder gives them, resized and padded, to boxes, scores and classes.

    Args:
        model: a detector, which is left as it is. It has `detect`, see `SparseRCNN.detect`, and `size_divisibility`.
        channel_order: "RGB" or "BGR", what the model was trained with.

    Raises:
        InputError: this kind of model has no form for export.
    """

    def __init__(self, model: nn.Module, channel_order: str):
        super().__init__()
        if not hasattr(model, "detect"):
            raise InputError(
                f"{type(model).__name__} cannot be exported: what its proposals and NMS leave differs in number from "
                "picture to picture. SparseRCNN and EfficientDet can"
            )
        if channel_order not in ("RGB", "BGR"):
            raise InputError(f"INPUT.FORMAT {channel_order} cannot be exported, only RGB and BGR can")
        self.model: Any = copy.deepcopy(model).eval()
        if isinstance(self.model, SparseRCNN):
            self.model.head.routing.pooler = ExportablePooler(self.model.head.routing.pooler)
        self.is_bgr = channel_order == "BGR"

    @property
    def divisor(self) -> int:
        """What the height and the width of a batch must be multiples of."""
        return max(self.model.size_divisibility, 1)

    @property
    def nms_threshold(self) -> float | None:
        """The IoU above which a detection suppresses worse ones of its class, None for a model without NMS."""
        return getattr(self.model, "nms_threshold", None)

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Detect.

        Args:
            images: (B, H, W, 3) uint8 RGB, each in the upper left corner, H and W multiples of `divisor`.
            sizes: (B, 2) int64, height and width of each image without padding.

        Returns:
            Boxes (B, N, 4), absolute xyxy in pixels of `images` and inside each image, scores (B, N), best first and 0
            where there are fewer detections, and classes (B, N) int64.
        """
        pixels = images.permute(0, 3, 1, 2).float()
        if self.is_bgr:
            pixels = pixels.flip(1)
        # Padding counts as zero after the normalization, whatever it is in `images`.
        rows = torch.arange(images.shape[1], device=images.device) < sizes[:, :1]
        columns = torch.arange(images.shape[2], device=images.device) < sizes[:, 1:]
        is_image = (rows[:, :, None] & columns[:, None])[:, None]
        normalized = torch.where(is_image, (pixels - self.model.pixel_mean) / self.model.pixel_std, 0.0)
        boxes, scores, classes = self.model.detect(normalized, sizes)
        return torch.minimum(boxes.clamp(min=0), image_whwh(sizes, boxes)[:, None]), scores, classes
