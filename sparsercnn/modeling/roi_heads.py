"""RoI heads of Fast and Faster R-CNN whose boxes read the pyramid as `MODEL.ROI_ROUTING` says.

detectron2's own `StandardROIHeads` sends each box to one level. Liu et al., PANet, CVPR 2018, section 3.2 (adaptive);
Guo et al., AugFPN, CVPR 2020, section 3.3 (soft).
"""

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY, StandardROIHeads
from detectron2.structures import Boxes
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from .roi_routing import LevelRouting, build_roi_routing


class RoutedPooler(nn.Module):
    """A routing where detectron2 has a `ROIPooler`: takes the boxes of each image, as many as there are.

    Args:
        routing: makes the RoI features of boxes from the pyramid.
    """

    def __init__(self, routing: LevelRouting):
        super().__init__()
        self.routing = routing

    def forward(self, x: list[Tensor], box_lists: list[Boxes]) -> Tensor:
        """Pool boxes.

        Args:
            x: (B, C, H, W) of each level, lowest first.
            box_lists: absolute xyxy boxes of each of B images.

        Returns:
            (R, C, resolution, resolution) for all R boxes, image by image.
        """
        boxes = pad_sequence([b.tensor for b in box_lists], batch_first=True)  # boxes without area where there are none
        counts = torch.tensor([len(b) for b in box_lists], device=boxes.device)
        is_box = torch.arange(boxes.shape[1], device=boxes.device) < counts[:, None]
        pooler = self.routing.pooler
        features = self.routing(pooler.prepare(x), boxes)[is_box.flatten()]  # (R, bins, C)
        return features.transpose(1, 2).unflatten(-1, (pooler.resolution,) * 2)


@ROI_HEADS_REGISTRY.register()
class RoutedROIHeads(StandardROIHeads):
    """`StandardROIHeads` with the routing and the pooler of `MODEL.ROI_ROUTING`; all else is detectron2's.

    The constructor takes what that of `StandardROIHeads` takes, a `RoutedPooler` for `box_pooler`.
    """

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        parts = super()._init_box_head(cfg, input_shape)
        return {**parts, "box_pooler": RoutedPooler(build_roi_routing(cfg, input_shape))}
