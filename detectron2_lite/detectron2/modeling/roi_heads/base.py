"""What all RoI heads share: matching proposals with ground truth, and sampling those to train on.

Girshick, Fast R-CNN, ICCV 2015, section 2.3.
"""

import torch
from torch import Tensor, nn

from detectron2.config import CfgNode, configurable
from detectron2.structures import ImageList, Instances, pairwise_iou
from detectron2.utils.events import get_event_storage

from ..matcher import Matcher
from ..proposal_generator.proposal_utils import add_ground_truth_to_proposals
from ..sampling import subsample_labels


class ROIHeads(nn.Module):
    """Base of all RoI heads: matches proposals with ground truth and samples those to train on.

    Args:
        num_classes: K, background not counted.
        batch_size_per_image: proposals of each image to train on.
        positive_fraction: at most this share of them holds an object.
        proposal_matcher: labels proposals 1 (object), 0 (background) or -1 (ignored) by their IoU with ground truth.
        proposal_append_gt: in training, the boxes of the ground truth are proposals, too.
    """

    @configurable
    def __init__(
        self,
        *,
        num_classes: int,
        batch_size_per_image: int,
        positive_fraction: float,
        proposal_matcher: Matcher,
        proposal_append_gt: bool = True,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction
        self.proposal_matcher = proposal_matcher
        self.proposal_append_gt = proposal_append_gt

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        roi_heads = cfg.MODEL.ROI_HEADS
        return {
            "num_classes": roi_heads.NUM_CLASSES,
            "batch_size_per_image": roi_heads.BATCH_SIZE_PER_IMAGE,
            "positive_fraction": roi_heads.POSITIVE_FRACTION,
            "proposal_matcher": Matcher(
                roi_heads.IOU_THRESHOLDS, roi_heads.IOU_LABELS, allow_low_quality_matches=False
            ),
            "proposal_append_gt": roi_heads.PROPOSAL_APPEND_GT,
        }

    def _sample_proposals(
        self, matched_idxs: Tensor, matched_labels: Tensor, gt_classes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Draw the proposals of one image to train on, objects first.

        Args:
            matched_idxs: (R,) index in [0, M) of the object that each proposal is matched with.
            matched_labels: (R,) 1 for a match, 0 for background, -1 for ignored.
            gt_classes: (M,) class of each object.

        Returns:
            (S,) index of each proposal drawn, and its class: [0, K), K for background.
        """
        if gt_classes.numel() > 0:
            classes = gt_classes[matched_idxs]
            classes[matched_labels == 0] = self.num_classes
            classes[matched_labels == -1] = -1
        else:
            classes = torch.full_like(matched_idxs, self.num_classes)
        objects, background = subsample_labels(
            classes, self.batch_size_per_image, self.positive_fraction, self.num_classes
        )
        sampled = torch.cat([objects, background])
        return sampled, classes[sampled]

    @torch.no_grad()
    def label_and_sample_proposals(self, proposals: list[Instances], targets: list[Instances]) -> list[Instances]:
        """The proposals to train on, with the ground truth that each is matched with.

        Args:
            proposals: of each image, with `proposal_boxes` and `objectness_logits`.
            targets: ground truth of each image, with `gt_boxes` and `gt_classes`, maybe further fields.

        Returns:
            `Instances` of each image with the fields of its proposals, `gt_classes` (K for background), and, where the
            image has objects, all other fields of the ground truth whose name begins with "gt_". Those of background
            mean nothing.
        """
        if self.proposal_append_gt:
            proposals = add_ground_truth_to_proposals(targets, proposals)
        sampled = [self._label_and_sample(p, t) for p, t in zip(proposals, targets, strict=True)]

        num_background = sum((p.gt_classes == self.num_classes).sum().item() for p in sampled)
        num_objects = sum(len(p) for p in sampled) - num_background
        storage = get_event_storage()
        storage.put_scalar("roi_head/num_fg_samples", num_objects / len(sampled))
        storage.put_scalar("roi_head/num_bg_samples", num_background / len(sampled))
        return sampled

    def _label_and_sample(self, proposals: Instances, targets: Instances) -> Instances:
        overlaps = pairwise_iou(targets.gt_boxes, proposals.proposal_boxes)
        matched_idxs, matched_labels = self.proposal_matcher(overlaps)
        sampled, gt_classes = self._sample_proposals(matched_idxs, matched_labels, targets.gt_classes)
        proposals = proposals[sampled]
        proposals.gt_classes = gt_classes
        if len(targets):
            for name, value in targets.get_fields().items():
                if name.startswith("gt_") and not proposals.has(name):
                    proposals.set(name, value[matched_idxs[sampled]])
        return proposals

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Predict objects, or compare with them.

        Args:
            images: the batch.
            features: (B, C, H, W) feature maps by name.
            proposals: of each image, with `proposal_boxes` and `objectness_logits`.
            targets: ground truth of each image, with `gt_boxes` and `gt_classes`; in training only.

        Returns:
            `Instances` of each image: detections with `pred_boxes`, `pred_classes` and `scores`, in training whatever
            the heads have; and the losses by name, none outside of training.
        """
        raise NotImplementedError
