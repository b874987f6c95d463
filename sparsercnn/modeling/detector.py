"""Sparse R-CNN as a detectron2 meta-architecture.

Sun et al., Sparse R-CNN: End-to-End Object Detection with Learnable Proposals, CVPR 2021.
"""

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn
from torchvision.ops import box_convert

from ..errors import InputError
from .boxes import image_whwh
from .criterion import SetCriterion
from .finite import report_broken, take_out_broken
from .head import DynamicHead


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
    """

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
    ):
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.criterion = criterion
        self.in_features = in_features
        self.num_proposals = num_proposals
        self.use_focal = use_focal
        self.init_proposal_features = nn.Embedding(num_proposals, hidden_dim)
        self.init_proposal_boxes = nn.Embedding(num_proposals, 4)
        with torch.no_grad():
            self.init_proposal_boxes.weight.copy_(torch.tensor([0.5, 0.5, 1.0, 1.0]))  # the whole image
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
        return {
            "backbone": backbone,
            "head": DynamicHead(cfg, shapes),
            "criterion": SetCriterion(cfg),
            "in_features": in_features,
            "num_proposals": node.NUM_PROPOSALS,
            "hidden_dim": node.HIDDEN_DIM,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "use_focal": node.USE_FOCAL,
        }

    @property
    def auxiliary_pyramids(self) -> dict[str, float]:
        """What the backbone offers beside its pyramid in training: {prefix of maps' names: weight of the losses}."""
        return getattr(self.backbone, "auxiliary_pyramids", {})

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

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
        proposals = self.proposal_boxes(images)
        if self.training:
            return self.losses(features, proposals, [self._target(x["instances"]) for x in batched_inputs])
        logits, boxes = self.refine(features, proposals)
        last_logits, last_boxes, broken = take_out_broken(logits[-1].float(), boxes[-1].float())
        results = self.select(last_logits, last_boxes, images.image_sizes)
        sizes = [output_size(x) for x in batched_inputs]
        detections = [{"instances": detector_postprocess(r, *size)} for r, size in zip(results, sizes, strict=True)]
        report_broken(broken, last_boxes.shape[:2].numel())
        return detections

    def losses(self, features: dict[str, Tensor], proposals: Tensor, targets: list[Instances]) -> dict[str, Tensor]:
        """Weighted losses of all stages; those of an auxiliary pyramid end in its prefix, as `loss_ce_0_lateral`.

        Args:
            features: feature maps of the backbone by name, (B, d, H, W) each.
            proposals: (B, N, 4) absolute xyxy.
            targets: `gt_boxes` and `gt_classes` of each image, on the model's device.
        """
        losses = {}
        for prefix, weight in {"": 1.0, **self.auxiliary_pyramids}.items():
            suffix = f"_{prefix.strip('_')}" if prefix else ""
            for name, loss in self.criterion(*self.refine(features, proposals, prefix), targets).items():
                losses[name + suffix] = weight * loss
        return losses

    def refine(self, features: dict[str, Tensor], proposals: Tensor, prefix: str = "") -> tuple[Tensor, Tensor]:
        """Logits (S, B, N, K) and boxes (S, B, N, 4) of every stage.

        Args:
            features: feature maps of the backbone by name, (B, d, H, W) each.
            proposals: (B, N, 4) absolute xyxy.
            prefix: what precedes the names of the levels to read: that of an auxiliary pyramid, "" for the pyramid.
        """
        levels = [features[prefix + name] for name in self.in_features]
        return self.head(levels, proposals, self.init_proposal_features.weight)

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
            images, self.backbone.size_divisibility, padding_constraints=self.backbone.padding_constraints
        )

    def proposal_boxes(self, images: ImageList) -> Tensor:
        """The learned boxes on each unpadded image: (B, N, 4) absolute xyxy."""
        boxes = box_convert(self.init_proposal_boxes.weight, "cxcywh", "xyxy")
        return boxes * image_whwh(images.image_sizes, boxes)[:, None]

    def select(self, logits: Tensor, boxes: Tensor, image_sizes: list[tuple[int, int]]) -> list[Instances]:
        """The N best results of each image: (class, proposal) pairs, or the best class of each proposal for softmax.

        Args:
            logits: (B, N, K), or K + 1 for the softmax variant.
            boxes: (B, N, 4) absolute xyxy.
            image_sizes: (height, width) of each image.
        """
        if self.use_focal:
            num_classes = logits.shape[-1]
            best, pairs = logits.flatten(1).topk(self.num_proposals)
            scores, proposals, classes = best.sigmoid(), pairs // num_classes, pairs % num_classes
        else:
            scores, classes = logits.softmax(-1)[..., :-1].max(-1)
            scores, proposals = scores.sort(descending=True)
            classes = classes.gather(1, proposals)
        return [
            Instances(size, pred_boxes=Boxes(b[p]), scores=s, pred_classes=c)
            for size, b, p, s, c in zip(image_sizes, boxes, proposals, scores, classes, strict=True)
        ]


def output_size(inputs: dict) -> tuple[int, int]:
    """Height and width that results are wanted in: those the input names, or those of its image."""
    return inputs.get("height", inputs["image"].shape[-2]), inputs.get("width", inputs["image"].shape[-1])
