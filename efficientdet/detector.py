"""EfficientDet as a detectron2 meta-architecture.

Tan et al., EfficientDet: Scalable and Efficient Object Detection, CVPR 2020.
"""

import math
from functools import partial
from typing import Any, cast

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import cat
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from .anchors import EfficientDetAnchors
from .config import check_config, check_norm
from .criterion import EfficientDetCriterion
from .errors import EfficientDetConfigError
from .head import EfficientDetHead
from .nms import Suppression, batch_nms, hard_nms, soft_nms
from .scaling import scaled_keys

# Logarithm of the largest growth from an anchor to its box. The authors set no limit; this one keeps sizes finite.
LARGEST_LOG_RATIO = 15.0
DELTAS = Box2BoxTransform((1.0, 1.0, 1.0, 1.0), LARGEST_LOG_RATIO)


@META_ARCH_REGISTRY.register()
class EfficientDet(nn.Module):
    """A backbone and a head that classifies and moves the anchors of every level.

    Args:
        backbone: maps images to named feature maps. If it has `auxiliary_pyramids`, {name prefix: loss weight}, it
            returns in training also maps whose names have these prefixes, and the head is supervised on them too.
        head: logits and deltas of the anchors.
        anchor_generator: makes the anchors of feature maps.
        criterion: the losses.
        suppress: NMS, see `Suppression`.
        nms_threshold: the IoU above which `suppress` drops detections, which `detect` needs; None if it does otherwise.
        in_features: names of the feature maps that the head reads, lowest level first.
        pixel_mean, pixel_std: of each input channel; images are normalized by them.
        topk_candidates: best (anchor, class) pairs of an image that go into NMS.
        detections_per_image: most detections of an image.
    """

    num_classes_key = "MODEL.EFFICIENTDET.NUM_CLASSES"

    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        head: EfficientDetHead,
        anchor_generator: EfficientDetAnchors,
        criterion: EfficientDetCriterion,
        suppress: Suppression,
        in_features: list[str],
        pixel_mean: list[float],
        pixel_std: list[float],
        topk_candidates: int = 5000,
        detections_per_image: int = 100,
        nms_threshold: float | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.anchor_generator = anchor_generator
        self.criterion = criterion
        self.suppress = suppress
        self.nms_threshold = nms_threshold
        self.in_features = in_features
        self.topk_candidates = topk_candidates
        self.detections_per_image = detections_per_image
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        node = cfg.MODEL.EFFICIENTDET
        check_config(node)
        backbone = build_backbone(cfg)
        channels, strides = _pyramid(cfg, backbone)
        check_norm(node.NORM, channels)
        anchors = EfficientDetAnchors(strides, node.ANCHOR_SCALE)
        return {
            "backbone": backbone,
            "head": EfficientDetHead(
                channels=channels,
                num_levels=len(strides),
                num_anchors=anchors.num_anchors[0],
                num_classes=node.NUM_CLASSES,
                depth=node.DEPTH,
                norm=node.NORM,
                prior_prob=node.PRIOR_PROB,
            ),
            "anchor_generator": anchors,
            "criterion": EfficientDetCriterion(
                DELTAS, node.FOCAL_ALPHA, node.FOCAL_GAMMA, node.HUBER_DELTA, node.BOX_WEIGHT
            ),
            "suppress": partial(hard_nms, threshold=node.NMS_THRESH)
            if node.NMS == "hard"
            else partial(soft_nms, sigma=node.SOFT_NMS_SIGMA),
            "nms_threshold": node.NMS_THRESH if node.NMS == "hard" else None,
            "in_features": node.IN_FEATURES,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "topk_candidates": node.TOPK_CANDIDATES,
            "detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
        }

    @staticmethod
    def config_defaults(cfg: CfgNode) -> dict[str, Any]:
        """`{config key: default}`: what the compound coefficient of `cfg` stands for, see `scaled_keys`."""
        return scaled_keys(cfg.MODEL.EFFICIENTDET.PHI)

    @property
    def auxiliary_pyramids(self) -> dict[str, float]:
        """What the backbone offers beside its pyramid in training: {prefix of maps' names: weight of the losses}."""
        return getattr(self.backbone, "auxiliary_pyramids", {})

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    @property
    def size_divisibility(self) -> int:
        """What the height and the width of a batch of images must be multiples of."""
        return math.lcm(self.backbone.size_divisibility or 1, *self.anchor_generator.strides)

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """Losses in training, detections otherwise.

        Args:
            batched_inputs: a dict for each image, as detectron2's mappers make them: `image` (3, H, W) in
                `cfg.INPUT.FORMAT` channel order, 0 to 255; in training `instances` with `gt_boxes` and `gt_classes`;
                for inference `height` and `width` of the wanted output, by default those of `image`.

        Returns:
            In training the weighted losses. Otherwise {"instances": Instances} for each image, with `pred_boxes`
            (absolute xyxy in the output size), `scores` and `pred_classes`, best first.
        """
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        if self.training:
            return self.losses(features, [x["instances"].to(self.device) for x in batched_inputs])
        anchors, logits, deltas = self.predict(features)
        results = []
        for size, *of_image in zip(images.image_sizes, cat(logits, dim=1), cat(deltas, dim=1), strict=True):
            results.append(self.select(size, Boxes.cat(anchors).tensor, *of_image))
        return [
            {"instances": detector_postprocess(r, x.get("height", r.image_size[0]), x.get("width", r.image_size[1]))}
            for r, x in zip(results, batched_inputs, strict=True)
        ]

    def losses(self, features: dict[str, Tensor], targets: list[Instances]) -> dict[str, Tensor]:
        """Weighted losses; those of an auxiliary pyramid end in its prefix, as `loss_cls_lateral`.

        Args:
            features: feature maps of the backbone by name, (B, C, H, W) each.
            targets: `gt_boxes` and `gt_classes` of each image, on the model's device.
        """
        losses = {}
        for prefix, weight in {"": 1.0, **self.auxiliary_pyramids}.items():
            suffix = f"_{prefix.strip('_')}" if prefix else ""
            for name, loss in self.criterion(*self.predict(features, prefix), targets).items():
                losses[name + suffix] = weight * loss
        return losses

    def predict(self, features: dict[str, Tensor], prefix: str = "") -> tuple[list[Boxes], list[Tensor], list[Tensor]]:
        """Anchors, logits (B, N_i, K) and deltas (B, N_i, 4) of each level.

        Args:
            features: feature maps of the backbone by name, (B, C, H, W) each.
            prefix: what precedes the names of the levels to read: that of an auxiliary pyramid, "" for the pyramid.
        """
        levels = [features[prefix + name] for name in self.in_features]
        return self.anchor_generator(levels), *self.head(levels)

    def preprocess_image(self, batched_inputs: list[dict]) -> ImageList:
        """Normalized images in one batch, padded with zeros so that every level has a whole number of cells."""
        images = [(x["image"].to(self.device) - self.pixel_mean) / self.pixel_std for x in batched_inputs]
        return ImageList.from_tensors(
            images, self.size_divisibility, padding_constraints=self.backbone.padding_constraints
        )

    def select(self, image_size: tuple[int, int], anchors: Tensor, logits: Tensor, deltas: Tensor) -> Instances:
        """The detections of one image after NMS, best first.

        Args:
            image_size: height and width.
            anchors: (N, 4) absolute xyxy.
            logits: (N, K).
            deltas: (N, 4).
        """
        (boxes,), (scores,), (classes,) = self.candidates(anchors, logits[None], deltas[None])
        keep, scores = self.suppress(boxes, scores, classes, self.detections_per_image)
        return Instances(image_size, pred_boxes=Boxes(boxes[keep]), scores=scores, pred_classes=classes[keep])

    def candidates(self, anchors: Tensor, logits: Tensor, deltas: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The best (anchor, class) pairs of each image: boxes (B, M, 4), scores (B, M), best first, classes (B, M).

        Args:
            anchors: (N, 4) absolute xyxy, of every image.
            logits: (B, N, K).
            deltas: (B, N, 4).
        """
        num_classes = logits.shape[2]
        scores = logits.flatten(1).float()
        best, pairs = scores.topk(min(self.topk_candidates, scores.shape[1]))
        rows, classes = pairs // num_classes, pairs % num_classes
        chosen = deltas.gather(1, rows[..., None].expand(-1, -1, 4)).flatten(0, 1)
        boxes = DELTAS.apply_deltas(chosen, anchors[rows.flatten()]).unflatten(0, rows.shape)
        return boxes, best.sigmoid(), classes

    def detect(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Detections as tensors whose shapes do not depend on the data, which can be exported.

        Args:
            images: (B, 3, H, W), normalized, zero where an image is padded to multiples of `size_divisibility`.
            sizes: (B, 2) height and width of each image without padding.

        Returns:
            Boxes (B, N, 4) absolute xyxy, scores (B, N), best first, and classes (B, N) int64; all of them 0 where
            there are fewer detections.

        Raises:
            EfficientDetConfigError: the detector was built for soft NMS.
        """
        if self.nms_threshold is None:
            raise EfficientDetConfigError("soft NMS cannot be exported: set MODEL.EFFICIENTDET.NMS to hard")
        anchors, logits, deltas = self.predict(self.backbone(images))
        boxes, scores, classes = self.candidates(Boxes.cat(anchors).tensor, cat(logits, dim=1), cat(deltas, dim=1))
        limit = min(self.detections_per_image, self.topk_candidates)
        side = torch.sym_max(images.shape[2], images.shape[3])
        rows, scores = batch_nms(boxes, scores, classes, limit, self.nms_threshold, side, self.head.num_classes)
        is_detection = scores > 0
        boxes = boxes.gather(1, rows[..., None].expand(-1, -1, 4)) * is_detection[..., None]
        return boxes, scores, classes.gather(1, rows) * is_detection


def _pyramid(cfg: CfgNode, backbone: Backbone) -> tuple[int, list[int]]:
    """Channels and strides of the levels that the head reads."""
    names, shapes = cfg.MODEL.EFFICIENTDET.IN_FEATURES, backbone.output_shape()
    missing = [name for name in names if name not in shapes]
    if missing or not names:
        raise EfficientDetConfigError(
            f"MODEL.EFFICIENTDET.IN_FEATURES {names} asks for {', '.join(missing) or 'nothing'}, but "
            f"{cfg.MODEL.BACKBONE.NAME} makes {', '.join(shapes)}"
        )
    channels = {name: shapes[name].channels for name in names}
    if len(set(channels.values())) > 1:
        raise EfficientDetConfigError(
            f"MODEL.EFFICIENTDET.IN_FEATURES names levels of different channels, {channels}, which no head can share"
        )
    return cast(int, channels[names[0]]), [cast(int, shapes[name].stride) for name in names]
