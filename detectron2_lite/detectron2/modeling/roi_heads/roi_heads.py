"""RoI heads: pool the features of proposals and predict objects from them.

Girshick, Fast R-CNN, ICCV 2015; Ren et al., Faster R-CNN, NeurIPS 2015.
"""

from typing import Any

import torch
from torch import Tensor, nn

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.registry import Registry

from ..backbone.resnet import BottleneckBlock, ResNet
from ..poolers import ROIPooler
from .base import ROIHeads
from .box_head import build_box_head
from .fast_rcnn import FastRCNNOutputLayers

ROI_HEADS_REGISTRY = Registry("ROI_HEADS")
ROI_HEADS_REGISTRY.__doc__ = """
Registry of callables `(cfg, input_shape: dict[str, ShapeSpec]) -> nn.Module` that predict objects from feature maps and
proposals.
"""


def build_roi_heads(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> nn.Module:
    """Build `cfg.MODEL.ROI_HEADS.NAME` for feature maps of the given shapes."""
    return ROI_HEADS_REGISTRY.get(cfg.MODEL.ROI_HEADS.NAME)(cfg, input_shape)


def _assert_boxes_only(cfg: CfgNode) -> None:
    assert not (cfg.MODEL.MASK_ON or cfg.MODEL.KEYPOINT_ON), (
        f"{cfg.MODEL.ROI_HEADS.NAME} predicts boxes only: set MODEL.MASK_ON and MODEL.KEYPOINT_ON to False."
    )


def _build_pooler(cfg: CfgNode, shapes: list[ShapeSpec]) -> ROIPooler:
    return ROIPooler(
        output_size=cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION,
        scales=tuple(1.0 / shape.stride for shape in shapes),
        sampling_ratio=cfg.MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO,
        pooler_type=cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE,
    )


@ROI_HEADS_REGISTRY.register()
class Res5ROIHeads(ROIHeads):
    """Boxes from the last stage of a ResNet, run on the pooled features of each proposal: the "C4" models.

    He et al., Deep Residual Learning for Image Recognition, CVPR 2016, appendix A.

    Args:
        in_features: name of the feature map to pool from, one in a list.
        pooler: pools it.
        res5: the stage; any network from (N, C, H, W) to (N, C', H', W').
        box_predictor: predicts from the spatial mean of that.
        **kwargs: arguments of `ROIHeads`.
    """

    @configurable
    def __init__(
        self, *, in_features: list[str], pooler: ROIPooler, res5: nn.Module, box_predictor: nn.Module, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.in_features = in_features
        self.pooler = pooler
        self.res5 = res5
        self.box_predictor = box_predictor

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        _assert_boxes_only(cfg)
        ret = super().from_config(cfg)
        in_features = cfg.MODEL.ROI_HEADS.IN_FEATURES
        assert len(in_features) == 1, (
            f"Res5ROIHeads pools from one feature map, MODEL.ROI_HEADS.IN_FEATURES has {in_features}"
        )
        ret["in_features"] = in_features
        ret["pooler"] = _build_pooler(cfg, [input_shape[in_features[0]]])
        ret["res5"], out_channels = cls._build_res5_block(cfg)
        ret["box_predictor"] = FastRCNNOutputLayers(cfg, ShapeSpec(channels=out_channels, height=1, width=1))
        return ret

    @classmethod
    def _build_res5_block(cls, cfg: CfgNode) -> tuple[nn.Sequential, int]:
        """The stage, and the channels of its output."""
        resnets = cfg.MODEL.RESNETS
        assert not resnets.DEFORM_ON_PER_STAGE[-1], "Deformable conv is not yet supported in res5 head."
        # res5 has eight times the width of res2.
        out_channels = resnets.RES2_OUT_CHANNELS * 8
        blocks = ResNet.make_stage(
            BottleneckBlock,
            3,
            stride_per_block=[2, 1, 1],
            in_channels=out_channels // 2,
            bottleneck_channels=resnets.NUM_GROUPS * resnets.WIDTH_PER_GROUP * 8,
            out_channels=out_channels,
            num_groups=resnets.NUM_GROUPS,
            norm=resnets.NORM,
            stride_in_1x1=resnets.STRIDE_IN_1X1,
        )
        return nn.Sequential(*blocks), out_channels

    def _shared_roi_transform(self, features: list[Tensor], boxes: list[Boxes]) -> Tensor:
        return self.res5(self.pooler(features, boxes))

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Detections and no losses; in training losses and no detections. See `ROIHeads.forward`."""
        if self.training:
            assert targets is not None, "'targets' argument is required during training"
            proposals = self.label_and_sample_proposals(proposals, targets)
        box_features = self._shared_roi_transform(
            [features[name] for name in self.in_features], [p.proposal_boxes for p in proposals]
        )
        predictions = self.box_predictor(box_features.mean(dim=[2, 3]))
        if self.training:
            return [], self.box_predictor.losses(predictions, proposals)
        detections, _ = self.box_predictor.inference(predictions, proposals)
        return self.forward_with_given_boxes(features, detections), {}

    def forward_with_given_boxes(self, features: dict[str, Tensor], instances: list[Instances]) -> list[Instances]:
        """What is predicted for boxes that are given: nothing but the boxes."""
        assert not self.training
        assert instances[0].has("pred_boxes") and instances[0].has("pred_classes")
        return instances


@ROI_HEADS_REGISTRY.register()
class StandardROIHeads(ROIHeads):
    """Boxes from features pooled out of one map or a pyramid: Fast and Faster R-CNN with FPN, and the "DC5" models.

    Args:
        box_in_features: names of the feature maps to pool from.
        box_pooler: pools them.
        box_head: makes of the pooled features what `box_predictor` takes.
        box_predictor: predicts, computes losses and chooses detections, as `FastRCNNOutputLayers` does.
        train_on_pred_boxes: further heads train on the boxes that this one predicts instead of on its proposals.
        **kwargs: arguments of `ROIHeads`.
    """

    @configurable
    def __init__(
        self,
        *,
        box_in_features: list[str],
        box_pooler: ROIPooler,
        box_head: nn.Module,
        box_predictor: nn.Module,
        train_on_pred_boxes: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.in_features = self.box_in_features = box_in_features
        self.box_pooler = box_pooler
        self.box_head = box_head
        self.box_predictor = box_predictor
        self.train_on_pred_boxes = train_on_pred_boxes

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        _assert_boxes_only(cfg)
        return {
            **super().from_config(cfg),
            "train_on_pred_boxes": cfg.MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES,
            **cls._init_box_head(cfg, input_shape),
        }

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        """Arguments of the constructor that are for boxes; subclasses override this to choose other parts."""
        in_features = cfg.MODEL.ROI_HEADS.IN_FEATURES
        shapes = [input_shape[name] for name in in_features]
        in_channels = {shape.channels for shape in shapes}
        assert len(in_channels) == 1, f"Feature maps of one pyramid have the same channels, got {in_channels}"
        resolution = cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION
        box_pooler = _build_pooler(cfg, shapes)
        box_head = build_box_head(cfg, ShapeSpec(channels=in_channels.pop(), height=resolution, width=resolution))
        return {
            "box_in_features": in_features,
            "box_pooler": box_pooler,
            "box_head": box_head,
            "box_predictor": FastRCNNOutputLayers(cfg, box_head.output_shape),
        }

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Detections and no losses; in training the sampled proposals and losses. See `ROIHeads.forward`."""
        if self.training:
            assert targets is not None, "'targets' argument is required during training"
            proposals = self.label_and_sample_proposals(proposals, targets)
            return proposals, self._forward_box(features, proposals)
        detections = self._forward_box(features, proposals)
        return self.forward_with_given_boxes(features, detections), {}

    def forward_with_given_boxes(self, features: dict[str, Tensor], instances: list[Instances]) -> list[Instances]:
        """What is predicted for boxes that are given: nothing but the boxes."""
        assert not self.training
        assert instances[0].has("pred_boxes") and instances[0].has("pred_classes")
        return instances

    def _forward_box(
        self, features: dict[str, Tensor], proposals: list[Instances]
    ) -> dict[str, Tensor] | list[Instances]:
        """Losses by name in training, detections of each image otherwise."""
        maps = [features[name] for name in self.box_in_features]
        box_features = self.box_head(self.box_pooler(maps, [p.proposal_boxes for p in proposals]))
        predictions = self.box_predictor(box_features)
        if not self.training:
            return self.box_predictor.inference(predictions, proposals)[0]
        losses = self.box_predictor.losses(predictions, proposals)
        if self.train_on_pred_boxes:
            with torch.no_grad():
                boxes = self.box_predictor.predict_boxes_for_gt_classes(predictions, proposals)
            for of_image, predicted in zip(proposals, boxes, strict=True):
                of_image.proposal_boxes = Boxes(predicted)
        return losses
