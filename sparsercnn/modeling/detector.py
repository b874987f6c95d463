"""Sparse R-CNN as a detectron2 meta-architecture.

Sun et al., Sparse R-CNN: End-to-End Object Detection with Learnable Proposals, CVPR 2021.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn
from torchvision.ops import box_convert

from ..config import SPARSERCNN_DEFAULTS
from ..errors import InputError
from .boxes import image_whwh
from .criterion import SetCriterion
from .denoising import Denoising, NoisedObjects
from .dense_queries import DensePredictions, DenseQueries
from .distinct import sink_repeats
from .fast_learning import fast_learning
from .finite import report_broken, take_out_broken
from .head import DynamicHead
from .initial_boxes import whole_image


@dataclass(frozen=True)
class Proposals:
    """What the head starts from.

    Attributes:
        boxes: (B, N, 4) absolute xyxy.
        features: (N, d), or (B, N, d) where each image has its own.
        dense: the predictions that they were chosen from, None for learned proposals.
    """

    boxes: Tensor
    features: Tensor
    dense: DensePredictions | None = None


@META_ARCH_REGISTRY.register()
class SparseRCNN(nn.Module):
    """A backbone and a cascade of heads that refines learned proposals: no anchors, no RPN, no NMS.

    Args:
        backbone: maps images to named feature maps. If it has `auxiliary_pyramids`, {name prefix: loss weight}, it
            returns in training also maps whose names have these prefixes, and the head is supervised on them too.
        head: refines boxes and object features in stages.
        criterion: the losses of all stages.
        in_features: names of the feature maps that the head reads, lowest level first.
        num_proposals: N learned boxes and features.
        hidden_dim: width d of the proposal features.
        pixel_mean, pixel_std: of each input channel; images are normalized by them.
        use_focal: logits are K sigmoids rather than a softmax over K + 1 classes.
        initial_boxes: (N, 4) cxcywh in [0, 1] where learned boxes start, the whole image by default.
        dense_queries: makes the proposals of each image; there are no learned boxes and features then.
        denoising: makes noised copies of objects, which are refined beside the proposals in training.
        distinct_overlap: largest IoU of two detections of a class that both keep their scores, see `sink_repeats`; 1
            for no such limit.
    """

    config_defaults: ClassVar = SPARSERCNN_DEFAULTS
    num_classes_key = "MODEL.SparseRCNN.NUM_CLASSES"

    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        head: DynamicHead,
        criterion: SetCriterion,
        in_features: list[str],
        num_proposals: int,
        hidden_dim: int,
        pixel_mean: list[float],
        pixel_std: list[float],
        use_focal: bool = True,
        initial_boxes: Tensor | None = None,
        dense_queries: DenseQueries | None = None,
        denoising: Denoising | None = None,
        distinct_overlap: float = 1.0,
    ):
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.criterion = criterion
        self.in_features = in_features
        self.num_proposals = num_proposals
        self.use_focal = use_focal
        self.dense_queries = dense_queries
        self.denoising = denoising
        self.distinct_overlap = distinct_overlap
        if dense_queries is None:
            self.init_proposal_features = nn.Embedding(num_proposals, hidden_dim)
            self.init_proposal_boxes = nn.Embedding(num_proposals, 4)
            with torch.no_grad():
                self.init_proposal_boxes.weight.copy_(
                    whole_image(num_proposals) if initial_boxes is None else initial_boxes
                )
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        node = cfg.MODEL.SparseRCNN
        backbone = build_backbone(cfg)
        shapes = backbone.output_shape()
        in_features = cfg.MODEL.ROI_HEADS.IN_FEATURES
        missing = [name for name in in_features if name not in shapes]
        if missing:
            raise InputError(
                f"MODEL.ROI_HEADS.IN_FEATURES {in_features} asks for {', '.join(missing)}, but "
                f"{cfg.MODEL.BACKBONE.NAME} makes {', '.join(shapes)}."
            )
        widths = {name: shapes[name].channels for name in in_features}
        if set(widths.values()) != {node.HIDDEN_DIM}:
            raise InputError(
                f"MODEL.SparseRCNN.HIDDEN_DIM is {node.HIDDEN_DIM}, but {cfg.MODEL.BACKBONE.NAME} makes levels with "
                f"these channels: {widths}. Set HIDDEN_DIM and the neck's output channels to the same number."
            )
        head = DynamicHead(cfg, shapes)
        return {
            "backbone": backbone,
            "head": head,
            "criterion": SetCriterion(cfg),
            "in_features": in_features,
            "num_proposals": node.NUM_PROPOSALS,
            "hidden_dim": node.HIDDEN_DIM,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "use_focal": node.USE_FOCAL,
            "distinct_overlap": node.DISTINCT_OVERLAP,
            **fast_learning(cfg, shapes),
        }

    @property
    def auxiliary_pyramids(self) -> dict[str, float]:
        """What the backbone offers beside its pyramid in training: {prefix of maps' names: weight of the losses}."""
        return getattr(self.backbone, "auxiliary_pyramids", {})

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    @property
    def size_divisibility(self) -> int:
        """What the height and the width of a batch of images must be multiples of; 0 or 1 for nothing."""
        return self.backbone.size_divisibility

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
        proposals = self.propose(features, images)
        if self.training:
            return self.losses(features, proposals, [self._target(x["instances"]) for x in batched_inputs])
        logits, boxes = self.refine(features, proposals)
        last_logits, last_boxes, broken = take_out_broken(logits[-1].float(), boxes[-1].float())
        results = self.select(last_logits, last_boxes, images.image_sizes)
        sizes = [output_size(x) for x in batched_inputs]
        detections = [{"instances": detector_postprocess(r, *size)} for r, size in zip(results, sizes, strict=True)]
        report_broken(broken, last_boxes.shape[:2].numel())
        return detections

    def detect(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Detections as tensors whose shapes do not depend on the data, which can be exported.

        Args:
            images: (B, 3, H, W), normalized, zero where an image is padded to multiples of `size_divisibility`.
            sizes: (B, 2) height and width of each image without padding.

        Returns:
            Boxes (B, N, 4) absolute xyxy, scores (B, N), best first, and classes (B, N) int64.
        """
        features = self.backbone(images)
        proposals = self.propose(features, ImageList(images, sizes))  # type: ignore[arg-type]
        logits, boxes = self.refine(features, proposals)
        return self.best(logits[-1], boxes[-1])

    def losses(self, features: dict[str, Tensor], proposals: Proposals, targets: list[Instances]) -> dict[str, Tensor]:
        """Weighted losses of all stages.

        Those of an auxiliary pyramid end in its prefix, as `loss_ce_0_lateral`, those of denoising in `_dn` (before the
        prefix), and those of the dense branch are `loss_ce_dense` and so on.

        Args:
            features: feature maps of the backbone by name, (B, d, H, W) each.
            proposals: of `propose`.
            targets: `gt_boxes` and `gt_classes` of each image, on the model's device.
        """
        losses = {}
        noised = None if self.denoising is None else self.denoising(targets)
        for prefix, weight in {"": 1.0, **self.auxiliary_pyramids}.items():
            suffix = f"_{prefix.strip('_')}" if prefix else ""
            for name, loss in self._losses_of_stages(features, proposals, noised, targets, prefix).items():
                losses[name + suffix] = weight * loss
        if self.dense_queries is not None and proposals.dense is not None:
            dense = self.dense_queries.losses(proposals.dense, targets)
            losses |= {f"{name}_dense": loss for name, loss in dense.items()}
        return losses

    def _losses_of_stages(
        self,
        features: dict[str, Tensor],
        proposals: Proposals,
        noised: NoisedObjects | None,
        targets: list[Instances],
        prefix: str,
    ) -> dict[str, Tensor]:
        if self.denoising is None or noised is None:
            return self.criterion(*self.refine(features, proposals, prefix), targets)
        count = proposals.boxes.shape[1]
        objects = proposals.features.expand(len(targets), -1, -1)
        together = Proposals(
            torch.cat([proposals.boxes, noised.boxes], dim=1), torch.cat([objects, noised.features], dim=1)
        )
        logits, boxes = self.refine(features, together, prefix, noised.hidden_beside(count))
        losses = self.criterion(logits[:, :, :count], boxes[:, :, :count], targets)
        of_copies = self.denoising.losses(logits[:, :, count:], boxes[:, :, count:], noised, targets, self.criterion)
        return losses | {f"{name}_dn": loss for name, loss in of_copies.items()}

    def refine(
        self, features: dict[str, Tensor], proposals: Proposals, prefix: str = "", hidden: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits (S, B, N, K) and boxes (S, B, N, 4) of every stage.

        Args:
            features: feature maps of the backbone by name, (B, d, H, W) each.
            proposals: of `propose`.
            prefix: what precedes the names of the levels to read: that of an auxiliary pyramid, "" for the pyramid.
            hidden: (B, N, N) bool, True where the row's proposal must not see the column's; None if all see all.
        """
        levels = [features[prefix + name] for name in self.in_features]
        return self.head(levels, proposals.boxes, proposals.features, hidden)

    def _target(self, instances: Instances) -> Instances:
        """What the losses need, on the model's device; the host does not wait until it is there."""
        boxes, classes = (
            t.to(self.device, non_blocking=True) for t in (instances.gt_boxes.tensor, instances.gt_classes)
        )
        return Instances(instances.image_size, gt_boxes=Boxes(boxes), gt_classes=classes)

    def preprocess_image(self, batched_inputs: list[dict]) -> ImageList:
        """Normalized images in one batch, padded with zeros to what the backbone can divide."""
        images = [
            (x["image"].to(self.device, non_blocking=True) - self.pixel_mean).div_(self.pixel_std)
            for x in batched_inputs
        ]
        return ImageList.from_tensors(
            images, self.size_divisibility, padding_constraints=self.backbone.padding_constraints
        )

    def propose(self, features: dict[str, Tensor], images: ImageList) -> Proposals:
        """What the head starts from: the learned boxes on each unpadded image, or the best locations of the pyramid.

        Args:
            features: feature maps of the backbone by name, (B, d, H, W) each.
            images: that they are of.
        """
        if self.dense_queries is not None:
            dense = self.dense_queries(features, images.image_sizes)
            return Proposals(*self.dense_queries.select(dense), dense)
        boxes = box_convert(self.init_proposal_boxes.weight, "cxcywh", "xyxy")
        boxes = boxes * image_whwh(images.image_sizes, boxes)[:, None]
        return Proposals(boxes, self.init_proposal_features.weight)

    def select(self, logits: Tensor, boxes: Tensor, image_sizes: list[tuple[int, int]]) -> list[Instances]:
        """The N best results of each image as `Instances`; see `best`.

        Args:
            logits: (B, N, K), or K + 1 for the softmax variant.
            boxes: (B, N, 4) absolute xyxy.
            image_sizes: (height, width) of each image.
        """
        boxes, scores, classes = self.best(logits, boxes)
        return [
            Instances(size, pred_boxes=Boxes(boxes[i]), scores=scores[i], pred_classes=classes[i])
            for i, size in enumerate(image_sizes)
        ]

    def best(self, logits: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The N best (class, proposal) pairs of each image, or the best class of each proposal for softmax.

        Args:
            logits: (B, N, K), or K + 1 for the softmax variant.
            boxes: (B, N, 4).

        Returns:
            Boxes (B, N, 4), scores (B, N), best first, and classes (B, N) int64.
        """
        if self.use_focal:
            num_classes = logits.shape[-1]
            best, pairs = logits.flatten(1).topk(logits.shape[1])
            scores, proposals, classes = best.sigmoid(), pairs // num_classes, pairs % num_classes
        else:
            scores, classes = logits.softmax(-1)[..., :-1].max(-1)
            scores, proposals = scores.sort(descending=True)
            classes = classes.gather(1, proposals)
        boxes = boxes.gather(1, proposals[..., None].expand(-1, -1, 4))
        if self.distinct_overlap < 1:
            return sink_repeats(boxes, scores, classes, self.distinct_overlap)
        return boxes, scores, classes


def output_size(inputs: dict) -> tuple[int, int]:
    """Height and width that results are wanted in: those the input names, or those of its image."""
    return inputs.get("height", inputs["image"].shape[-2]), inputs.get("width", inputs["image"].shape[-1])
