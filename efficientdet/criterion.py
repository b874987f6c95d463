"""What EfficientDet learns from: anchors matched to objects, focal loss of classes, Huber loss of box deltas."""

import torch
import torch.nn.functional as F
from detectron2.layers import cat
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances, pairwise_iou
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor


def match_anchors(iou: Tensor, threshold: float = 0.5) -> Tensor:
    """The object that each anchor has to find: the one it overlaps most, if by the threshold or more.

    Besides, each object gets the anchor that overlaps it most, whatever else that one overlaps. Of several objects that
    would have the same anchor in this way the first gets it.

    Args:
        iou: (M, N) overlaps of M objects with N anchors.
        threshold: smallest overlap.

    Returns:
        (N,) int64 indices of objects, -1 for background.
    """
    num_objects, num_anchors = iou.shape
    if num_objects == 0:
        return torch.full((num_anchors,), -1, device=iou.device)
    best, matches = iou.max(dim=0)
    matches[best < threshold] = -1
    owners = torch.full_like(matches, num_objects)
    objects = torch.arange(num_objects, device=iou.device)
    owners.scatter_reduce_(0, iou.argmax(dim=1), objects, "amin")
    return torch.where(owners < num_objects, owners, matches)


class EfficientDetCriterion:
    """Focal loss of the classes and Huber loss of the box deltas, over the anchors that found an object plus one.

    The class loss is the sum over all anchors and classes, divided by P + 1, where P counts the matched anchors of the
    batch. The box loss is the sum over the deltas of the matched anchors, divided by 4 (P + 1) and times `box_weight`.
    Each process counts its own anchors, as in the authors' code.

    Args:
        transform: between boxes and deltas.
        alpha: weight of an object's class in the focal loss; the others have 1 − alpha.
        gamma: exponent of the modulating factor (1 − p_t), which plays down easy examples.
        delta: error from which on the Huber loss, e² / 2, is linear.
        box_weight: weight of the box loss.
    """

    def __init__(
        self,
        transform: Box2BoxTransform,
        alpha: float = 0.25,
        gamma: float = 1.5,
        delta: float = 0.1,
        box_weight: float = 50.0,
    ) -> None:
        self.transform = transform
        self.alpha = alpha
        self.gamma = gamma
        self.delta = delta
        self.box_weight = box_weight

    def __call__(
        self, anchors: list[Boxes], logits: list[Tensor], deltas: list[Tensor], targets: list[Instances]
    ) -> dict[str, Tensor]:
        """The weighted losses, `loss_cls` and `loss_box_reg`.

        Args:
            anchors: of each level, N_i absolute xyxy.
            logits: (B, N_i, K) for each level.
            deltas: (B, N_i, 4) for each level.
            targets: `gt_boxes` and `gt_classes` of each image, on the device of the logits.
        """
        all_anchors = Boxes.cat(anchors)
        matches = torch.stack([match_anchors(pairwise_iou(x.gt_boxes, all_anchors)) for x in targets])
        images, positives = (matches >= 0).nonzero(as_tuple=True)
        normalizer = len(images) + 1.0
        # Rows of all objects of the batch.
        first = torch.tensor([0, *(len(x) for x in targets)][:-1], device=matches.device).cumsum(0)
        objects = first[images] + matches[images, positives]
        classes = cat([x.gt_classes for x in targets])[objects]
        boxes = cat([x.gt_boxes.tensor for x in targets])[objects]

        all_logits = cat(logits, dim=1).float()
        labels = torch.zeros_like(all_logits)
        labels[images, positives, classes] = 1.0
        class_loss = sigmoid_focal_loss(all_logits, labels, self.alpha, self.gamma, reduction="sum")

        wanted = self.transform.get_deltas(all_anchors.tensor[positives], boxes)
        found = cat(deltas, dim=1)[images, positives].float()
        errors = F.huber_loss(found, wanted, delta=self.delta, reduction="none")
        # The authors' code tells anchors of the background by deltas of zero, and so skips one that happens to be zero.
        box_loss = errors[wanted != 0].sum()
        return {
            "loss_cls": class_loss / normalizer,
            "loss_box_reg": self.box_weight * box_loss / (4 * normalizer),
        }
