"""Region proposal network: finds where objects of any class may be.

Ren et al., Faster R-CNN, NeurIPS 2015, section 3.1; on a pyramid: Lin et al., Feature Pyramid Networks, CVPR 2017,
section 4.1.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec, cat
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from detectron2.utils.events import get_event_storage
from detectron2.utils.memory import retry_if_cuda_oom
from detectron2.utils.registry import Registry

from ..anchor_generator import build_anchor_generator
from ..box_regression import Box2BoxTransform, _dense_box_regression_loss
from ..matcher import Matcher
from ..sampling import subsample_labels
from .build import PROPOSAL_GENERATOR_REGISTRY
from .proposal_utils import find_top_rpn_proposals

RPN_HEAD_REGISTRY = Registry("RPN_HEAD")
RPN_HEAD_REGISTRY.__doc__ = """
Registry of callables `(cfg, input_shape: list[ShapeSpec]) -> nn.Module` that predict objectness and box deltas.
"""


def build_rpn_head(cfg: CfgNode, input_shape: list[ShapeSpec]) -> nn.Module:
    """Build `cfg.MODEL.RPN.HEAD_NAME` for feature maps of the given shapes."""
    return RPN_HEAD_REGISTRY.get(cfg.MODEL.RPN.HEAD_NAME)(cfg, input_shape)


@RPN_HEAD_REGISTRY.register()
class StandardRPNHead(nn.Module):
    """3×3 convolutions with ReLU, then 1×1 convolutions to objectness and to deltas, shared by all levels.

    Args:
        in_channels: channels of every feature map.
        num_anchors: anchors at each cell.
        box_dim: numbers that describe a box.
        conv_dims: output channels of each 3×3 convolution; -1 for as many as its input has.

    Raises:
        ValueError: for another number that is not positive.
    """

    @configurable
    def __init__(
        self, *, in_channels: int, num_anchors: int, box_dim: int = 4, conv_dims: Sequence[int] = (-1,)
    ) -> None:
        super().__init__()
        convs = []
        channels = in_channels
        for dim in conv_dims:
            out_channels = channels if dim == -1 else dim
            if out_channels <= 0:
                raise ValueError(f"Conv output channels should be greater than 0. Got {out_channels}")
            convs.append(Conv2d(channels, out_channels, kernel_size=3, stride=1, padding=1, activation=nn.ReLU()))
            channels = out_channels
        # A single convolution has no number in its name, so that the weights of published models fit.
        if len(convs) == 1:
            self.conv = convs[0]
        else:
            self.conv = nn.Sequential()
            for i, conv in enumerate(convs):
                self.conv.add_module(f"conv{i}", conv)
        self.objectness_logits = nn.Conv2d(channels, num_anchors, kernel_size=1, stride=1)
        self.anchor_deltas = nn.Conv2d(channels, num_anchors * box_dim, kernel_size=1, stride=1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.constant_(layer.bias, 0)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict:
        in_channels = {shape.channels for shape in input_shape}
        assert len(in_channels) == 1, "Each level must have the same channel!"
        # The registered generator, whichever it is, knows best how many anchors it makes.
        anchor_generator = build_anchor_generator(cfg, input_shape)
        num_anchors = set(anchor_generator.num_anchors)
        assert len(num_anchors) == 1, "Each level must have the same number of anchors per spatial position"
        return {
            "in_channels": in_channels.pop(),
            "num_anchors": num_anchors.pop(),
            "box_dim": anchor_generator.box_dim,
            "conv_dims": cfg.MODEL.RPN.CONV_DIMS,
        }

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Predict for every anchor of every level.

        Args:
            features: (B, C, H, W) of each level.

        Returns:
            (B, num_anchors, H, W) objectness logits of each level, and (B, num_anchors * box_dim, H, W) deltas.
        """
        hidden = [self.conv(x) for x in features]
        return [self.objectness_logits(x) for x in hidden], [self.anchor_deltas(x) for x in hidden]


@PROPOSAL_GENERATOR_REGISTRY.register()
class RPN(nn.Module):
    """Region proposal network: scores anchors as object or background, and refines them to proposals.

    Args:
        in_features: names of the feature maps to use.
        head: predicts from feature maps what `StandardRPNHead.forward` says.
        anchor_generator: makes the anchors of each map, see `DefaultAnchorGenerator`.
        anchor_matcher: labels anchors 1 (object), 0 (background) or -1 (ignored) by their IoU with ground truth.
        box2box_transform: from anchors and deltas to boxes.
        batch_size_per_image: anchors of each image that count for the loss.
        positive_fraction: at most this share of them is labeled 1.
        pre_nms_topk: boxes of each level before suppression, in training and in test.
        post_nms_topk: proposals of each image after it, in training and in test.
        nms_thresh: IoU above which a worse box of the same level is suppressed.
        min_box_size: smaller proposals (either side, in pixels of the network input) are dropped.
        anchor_boundary_thresh: if not negative, anchors that leave the image by more than this many pixels are ignored.
        loss_weight: factor of both losses, or of each by its name.
        box_reg_loss_type: "smooth_l1", "giou", "diou" or "ciou".
        smooth_l1_beta: difference at which smooth L1 turns from quadratic to linear; 0 is plain L1.
    """

    @configurable
    def __init__(
        self,
        *,
        in_features: list[str],
        head: nn.Module,
        anchor_generator: nn.Module,
        anchor_matcher: Matcher,
        box2box_transform: Box2BoxTransform,
        batch_size_per_image: int,
        positive_fraction: float,
        pre_nms_topk: tuple[int, int],
        post_nms_topk: tuple[int, int],
        nms_thresh: float = 0.7,
        min_box_size: float = 0.0,
        anchor_boundary_thresh: float = -1.0,
        loss_weight: float | dict[str, float] = 1.0,
        box_reg_loss_type: str = "smooth_l1",
        smooth_l1_beta: float = 0.0,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.rpn_head = head
        self.anchor_generator = anchor_generator
        self.anchor_matcher = anchor_matcher
        self.box2box_transform = box2box_transform
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction
        # By whether the network is in training mode.
        self.pre_nms_topk = {True: pre_nms_topk[0], False: pre_nms_topk[1]}
        self.post_nms_topk = {True: post_nms_topk[0], False: post_nms_topk[1]}
        self.nms_thresh = nms_thresh
        self.min_box_size = float(min_box_size)
        self.anchor_boundary_thresh = anchor_boundary_thresh
        if isinstance(loss_weight, float):
            loss_weight = {"loss_rpn_cls": loss_weight, "loss_rpn_loc": loss_weight}
        self.loss_weight = loss_weight
        self.box_reg_loss_type = box_reg_loss_type
        self.smooth_l1_beta = smooth_l1_beta

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        rpn = cfg.MODEL.RPN
        shapes = [input_shape[name] for name in rpn.IN_FEATURES]
        return {
            "in_features": rpn.IN_FEATURES,
            "head": build_rpn_head(cfg, shapes),
            "anchor_generator": build_anchor_generator(cfg, shapes),
            "anchor_matcher": Matcher(rpn.IOU_THRESHOLDS, rpn.IOU_LABELS, allow_low_quality_matches=True),
            "box2box_transform": Box2BoxTransform(weights=rpn.BBOX_REG_WEIGHTS),
            "batch_size_per_image": rpn.BATCH_SIZE_PER_IMAGE,
            "positive_fraction": rpn.POSITIVE_FRACTION,
            "pre_nms_topk": (rpn.PRE_NMS_TOPK_TRAIN, rpn.PRE_NMS_TOPK_TEST),
            "post_nms_topk": (rpn.POST_NMS_TOPK_TRAIN, rpn.POST_NMS_TOPK_TEST),
            "nms_thresh": rpn.NMS_THRESH,
            "min_box_size": cfg.MODEL.PROPOSAL_GENERATOR.MIN_SIZE,
            "anchor_boundary_thresh": rpn.BOUNDARY_THRESH,
            "loss_weight": {
                "loss_rpn_cls": rpn.LOSS_WEIGHT,
                "loss_rpn_loc": rpn.BBOX_REG_LOSS_WEIGHT * rpn.LOSS_WEIGHT,
            },
            "box_reg_loss_type": rpn.BBOX_REG_LOSS_TYPE,
            "smooth_l1_beta": rpn.SMOOTH_L1_BETA,
        }

    def forward(
        self, images: ImageList, features: dict[str, Tensor], gt_instances: list[Instances] | None = None
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Propose objects, and in training compare with ground truth.

        Args:
            images: the batch; its image sizes clip the proposals.
            features: (B, C, H, W) feature maps by name.
            gt_instances: ground truth of each image with `gt_boxes`; needed in training only.

        Returns:
            `Instances` of each image with `proposal_boxes` (absolute, in pixels of the network input, no gradient)
            and `objectness_logits`, best first; and the losses by name, none outside of training.
        """
        maps = [features[name] for name in self.in_features]
        anchors = self.anchor_generator(maps)
        logits, deltas = self.rpn_head(maps)
        logits = [x.permute(0, 2, 3, 1).flatten(1) for x in logits]
        box_dim = self.anchor_generator.box_dim
        deltas = [x.unflatten(1, (-1, box_dim)).permute(0, 3, 4, 1, 2).flatten(1, -2) for x in deltas]

        losses = {}
        if self.training:
            assert gt_instances is not None, "RPN requires gt_instances in training!"
            gt_labels, gt_boxes = self.label_and_sample_anchors(anchors, gt_instances)
            losses = self.losses(anchors, logits, gt_labels, deltas, gt_boxes)
        return self.predict_proposals(anchors, logits, deltas, images.image_sizes), losses

    @torch.no_grad()
    def label_and_sample_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Assign ground truth to the anchors, and choose those that count for the loss.

        Args:
            anchors: of each level; N in all.
            gt_instances: ground truth of each image, with `gt_boxes`.

        Returns:
            For each image, (N,) int8 labels (1 object, 0 background, -1 does not count), and (N, 4) xyxy ground-truth
            boxes, which mean something where the label is 1.
        """
        all_anchors = Boxes.cat(anchors)
        gt_labels, matched_gt_boxes = [], []
        for instances in gt_instances:
            gt_boxes = instances.gt_boxes
            overlaps = retry_if_cuda_oom(pairwise_iou)(gt_boxes, all_anchors)
            matches, labels = retry_if_cuda_oom(self.anchor_matcher)(overlaps)
            labels = labels.to(device=gt_boxes.device)
            if self.anchor_boundary_thresh >= 0:
                labels[~all_anchors.inside_box(instances.image_size, self.anchor_boundary_thresh)] = -1
            gt_labels.append(self._subsample_labels(labels))
            matched_gt_boxes.append(gt_boxes[matches].tensor if len(gt_boxes) else torch.zeros_like(all_anchors.tensor))
        return gt_labels, matched_gt_boxes

    def _subsample_labels(self, labels: Tensor) -> Tensor:
        """The labels, in place, with -1 for those that are not in the random sample."""
        positive, negative = subsample_labels(labels, self.batch_size_per_image, self.positive_fraction, 0)
        labels.fill_(-1)
        labels[positive] = 1
        labels[negative] = 0
        return labels

    def losses(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        gt_boxes: list[Tensor],
    ) -> dict[str, Tensor]:
        """Binary cross-entropy of objectness and regression of boxes, per anchor that counts.

        Args:
            anchors: of each level; N in all.
            pred_objectness_logits: (B, A) of each level.
            gt_labels: (N,) of each image, see `label_and_sample_anchors`.
            pred_anchor_deltas: (B, A, box_dim) of each level.
            gt_boxes: (N, 4) of each image.

        Returns:
            "loss_rpn_cls" and "loss_rpn_loc", weighted.
        """
        labels = torch.stack(gt_labels)
        num_images = len(gt_labels)
        positive = labels == 1
        storage = get_event_storage()
        storage.put_scalar("rpn/num_pos_anchors", positive.sum().item() / num_images)
        storage.put_scalar("rpn/num_neg_anchors", (labels == 0).sum().item() / num_images)

        localization = _dense_box_regression_loss(
            anchors,
            self.box2box_transform,
            pred_anchor_deltas,
            gt_boxes,
            positive,
            box_reg_loss_type=self.box_reg_loss_type,
            smooth_l1_beta=self.smooth_l1_beta,
        )
        counts = labels >= 0
        objectness = F.binary_cross_entropy_with_logits(
            cat(pred_objectness_logits, dim=1)[counts], labels[counts].to(torch.float32), reduction="sum"
        )
        # Not the number of anchors in the sample, so that images with few of them do not weigh more.
        normalizer = self.batch_size_per_image * num_images
        losses = {"loss_rpn_cls": objectness / normalizer, "loss_rpn_loc": localization / normalizer}
        return {name: loss * self.loss_weight.get(name, 1.0) for name, loss in losses.items()}

    @torch.no_grad()
    def predict_proposals(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        image_sizes: list[tuple[int, int]],
    ) -> list[Instances]:
        """Refine the anchors and keep the best; see `find_top_rpn_proposals`. No gradient flows through.

        Args:
            anchors, pred_objectness_logits, pred_anchor_deltas: as for `losses`.
            image_sizes: (height, width) of each image.
        """
        return find_top_rpn_proposals(
            self._decode_proposals(anchors, pred_anchor_deltas),
            pred_objectness_logits,
            image_sizes,
            self.nms_thresh,
            self.pre_nms_topk[self.training],
            self.post_nms_topk[self.training],
            self.min_box_size,
            self.training,
        )

    def _decode_proposals(self, anchors: list[Boxes], pred_anchor_deltas: list[Tensor]) -> list[Tensor]:
        """(B, A, 4) boxes of each level."""
        proposals = []
        for anchors_i, deltas in zip(anchors, pred_anchor_deltas, strict=True):
            repeated = anchors_i.tensor.expand(deltas.shape[0], -1, -1).reshape(-1, anchors_i.tensor.shape[1])
            boxes = self.box2box_transform.apply_deltas(deltas.flatten(0, 1), repeated)
            proposals.append(boxes.unflatten(0, (deltas.shape[0], -1)))
        return proposals
