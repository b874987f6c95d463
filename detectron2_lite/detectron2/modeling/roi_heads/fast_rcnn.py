"""The last layers of Fast R-CNN: classify proposals and refine them.

Girshick, Fast R-CNN, ICCV 2015.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detectron2.config import CfgNode, configurable
from detectron2.data.detection_utils import get_fed_loss_cls_weights
from detectron2.layers import ShapeSpec, cat, cross_entropy, nonzero_tuple
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage

from ..box_regression import Box2BoxTransform, _dense_box_regression_loss
from .inference import fast_rcnn_inference, fast_rcnn_inference_single_image

__all__ = ["FastRCNNOutputLayers", "fast_rcnn_inference", "fast_rcnn_inference_single_image"]

# Sigmoids start at a probability of 0.01, because most classes are absent. Lin et al., Focal Loss for Dense Object
# Detection, ICCV 2017, section 4.1.
_RARE_LOGIT = -math.log((1 - 0.01) / 0.01)


def _counts(proposals: list[Instances]) -> list[int]:
    """Number of proposals of each image; while tracing, unlike len(), as part of the graph."""
    return [p.__len__() for p in proposals]


def _log_classification_stats(pred_logits: Tensor, gt_classes: Tensor, prefix: str = "fast_rcnn") -> None:
    """Put into the event storage how often the best class is right, overall and for objects, or misses an object.

    Args:
        pred_logits: (R, K + 1), the last is background.
        gt_classes: (R,), K for background.
        prefix: what the names of the scalars begin with.
    """
    total = gt_classes.numel()
    if total == 0:
        return
    background = pred_logits.shape[1] - 1
    predicted = pred_logits.argmax(dim=1)
    objects = (gt_classes >= 0) & (gt_classes < background)
    num_objects = int(objects.sum())
    storage = get_event_storage()
    storage.put_scalar(f"{prefix}/cls_accuracy", (predicted == gt_classes).sum().item() / total)
    if num_objects > 0:
        correct, missed = predicted[objects] == gt_classes[objects], predicted[objects] == background
        storage.put_scalar(f"{prefix}/fg_cls_accuracy", correct.sum().item() / num_objects)
        storage.put_scalar(f"{prefix}/false_negative", missed.sum().item() / num_objects)


class FastRCNNOutputLayers(nn.Module):
    """Two linear layers, to class scores and to box deltas, with their losses and inference.

    Args:
        input_shape: shape of the features of one box; an int is a number of channels.
        box2box_transform: from proposals and deltas to boxes.
        num_classes: K, background not counted.
        test_score_thresh, test_nms_thresh, test_topk_per_image: see `fast_rcnn_inference_single_image`.
        cls_agnostic_bbox_reg: predict one box per proposal instead of one per class.
        smooth_l1_beta: difference at which smooth L1 turns from quadratic to linear; 0 is plain L1.
        box_reg_loss_type: "smooth_l1", "giou", "diou" or "ciou".
        loss_weight: factor of both losses, or of each by its name.
        use_fed_loss: federated loss (Gupta et al., LVIS, CVPR 2019): only the classes present and some others, drawn
            at random, count.
        use_sigmoid_ce: a sigmoid for each class instead of a softmax over all; federated loss needs it.
        get_fed_loss_cls_weights: gives (K,) weights with which classes are drawn for federated loss.
        fed_loss_num_classes: how many classes federated loss uses at least.
    """

    fed_loss_cls_weights: Tensor

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec | int,
        *,
        box2box_transform: Box2BoxTransform,
        num_classes: int,
        test_score_thresh: float = 0.0,
        test_nms_thresh: float = 0.5,
        test_topk_per_image: int = 100,
        cls_agnostic_bbox_reg: bool = False,
        smooth_l1_beta: float = 0.0,
        box_reg_loss_type: str = "smooth_l1",
        loss_weight: float | dict[str, float] = 1.0,
        use_fed_loss: bool = False,
        use_sigmoid_ce: bool = False,
        get_fed_loss_cls_weights: Callable[[], Tensor] | None = None,
        fed_loss_num_classes: int = 50,
    ) -> None:
        super().__init__()
        if isinstance(input_shape, int):
            input_shape = ShapeSpec(channels=input_shape)
        self.num_classes = num_classes
        input_size = input_shape.channels * (input_shape.width or 1) * (input_shape.height or 1)
        num_boxes = 1 if cls_agnostic_bbox_reg else num_classes
        box_dim = len(box2box_transform.weights)
        self.cls_score = nn.Linear(input_size, num_classes + 1)
        self.bbox_pred = nn.Linear(input_size, num_boxes * box_dim)
        nn.init.normal_(self.cls_score.weight, std=0.01)
        nn.init.normal_(self.bbox_pred.weight, std=0.001)
        nn.init.constant_(self.cls_score.bias, _RARE_LOGIT if use_sigmoid_ce else 0)
        nn.init.constant_(self.bbox_pred.bias, 0)

        self.box2box_transform = box2box_transform
        self.smooth_l1_beta = smooth_l1_beta
        self.test_score_thresh = test_score_thresh
        self.test_nms_thresh = test_nms_thresh
        self.test_topk_per_image = test_topk_per_image
        self.box_reg_loss_type = box_reg_loss_type
        if isinstance(loss_weight, float):
            loss_weight = {"loss_cls": loss_weight, "loss_box_reg": loss_weight}
        self.loss_weight = loss_weight
        self.use_fed_loss = use_fed_loss
        self.use_sigmoid_ce = use_sigmoid_ce
        self.fed_loss_num_classes = fed_loss_num_classes
        if use_fed_loss:
            assert use_sigmoid_ce, "Please use sigmoid cross entropy loss with federated loss"
            assert get_fed_loss_cls_weights is not None, "federated loss needs get_fed_loss_cls_weights"
            weights = get_fed_loss_cls_weights()
            assert len(weights) == num_classes, (
                "Please check the provided fed_loss_cls_weights. Their size should match num_classes"
            )
            self.register_buffer("fed_loss_cls_weights", weights)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        head, roi_heads = cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ROI_HEADS
        return {
            "input_shape": input_shape,
            "box2box_transform": Box2BoxTransform(weights=head.BBOX_REG_WEIGHTS),
            "num_classes": roi_heads.NUM_CLASSES,
            "cls_agnostic_bbox_reg": head.CLS_AGNOSTIC_BBOX_REG,
            "smooth_l1_beta": head.SMOOTH_L1_BETA,
            "test_score_thresh": roi_heads.SCORE_THRESH_TEST,
            "test_nms_thresh": roi_heads.NMS_THRESH_TEST,
            "test_topk_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "box_reg_loss_type": head.BBOX_REG_LOSS_TYPE,
            "loss_weight": {"loss_box_reg": head.BBOX_REG_LOSS_WEIGHT},
            "use_fed_loss": head.USE_FED_LOSS,
            "use_sigmoid_ce": head.USE_SIGMOID_CE,
            "get_fed_loss_cls_weights": partial(
                get_fed_loss_cls_weights, cfg.DATASETS.TRAIN, head.FED_LOSS_FREQ_WEIGHT_POWER
            ),
            "fed_loss_num_classes": head.FED_LOSS_NUM_CLASSES,
        }

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Predict from the features of R proposals, (R, C) or (R, C, H, W).

        Returns:
            (R, K + 1) scores, the last of background, and (R, K * 4) deltas, or (R, 4) if they are class-agnostic.
        """
        x = torch.flatten(x, start_dim=1)
        return self.cls_score(x), self.bbox_pred(x)

    def losses(self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]) -> dict[str, Tensor]:
        """Losses of classes and boxes.

        Args:
            predictions: what `forward` returned for all proposals in order.
            proposals: of each image, with `proposal_boxes`, `gt_classes` (K for background) and `gt_boxes`.

        Returns:
            "loss_cls" and "loss_box_reg", weighted.
        """
        scores, deltas = predictions
        if proposals:
            gt_classes = cat([p.gt_classes for p in proposals])
            proposal_boxes = cat([p.proposal_boxes.tensor for p in proposals])
            assert not proposal_boxes.requires_grad, "Proposals should not require gradients!"
            # An image without objects has no ground-truth boxes. None of its proposals counts; any box will do.
            gt_boxes = cat([(p.gt_boxes if p.has("gt_boxes") else p.proposal_boxes).tensor for p in proposals])
        else:
            gt_classes = torch.empty(0, dtype=torch.int64, device=scores.device)
            proposal_boxes = gt_boxes = torch.empty((0, 4), device=deltas.device)
        _log_classification_stats(scores, gt_classes)

        classification = self.sigmoid_cross_entropy_loss if self.use_sigmoid_ce else cross_entropy
        losses = {
            "loss_cls": classification(scores, gt_classes),
            "loss_box_reg": self.box_reg_loss(proposal_boxes, gt_boxes, deltas, gt_classes),
        }
        return {name: loss * self.loss_weight.get(name, 1.0) for name, loss in losses.items()}

    def get_fed_loss_classes(
        self, gt_classes: Tensor, num_fed_loss_classes: int, num_classes: int, weight: Tensor
    ) -> Tensor:
        """Classes that count in federated loss: those of the ground truth, and others drawn up to a number.

        Args:
            gt_classes: (R,) in [0, num_classes], `num_classes` for background.
            num_fed_loss_classes: number of classes to reach.
            num_classes: K.
            weight: (K,) weights of drawing; 0 for never.

        Returns:
            (C,) different classes.
        """
        present = torch.unique(gt_classes)
        missing = num_fed_loss_classes - len(present)
        if missing <= 0:
            return present
        probability = torch.cat((weight.float(), weight.new_zeros(1)))  # never background
        probability[present] = 0
        return torch.cat((present, torch.multinomial(probability, missing, replacement=False)))

    def sigmoid_cross_entropy_loss(self, pred_class_logits: Tensor, gt_classes: Tensor) -> Tensor:
        """Binary cross-entropy summed over classes, mean over the R proposals.

        Args:
            pred_class_logits: (R, K + 1); the last column does not count.
            gt_classes: (R,), K for background.
        """
        if gt_classes.numel() == 0:
            return pred_class_logits.sum() * 0.0
        logits = pred_class_logits[:, :-1]
        target = F.one_hot(gt_classes, self.num_classes + 1)[:, :-1].to(logits.dtype)
        loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        if self.use_fed_loss:
            classes = self.get_fed_loss_classes(
                gt_classes, self.fed_loss_num_classes, self.num_classes, self.fed_loss_cls_weights
            )
            loss = loss[:, classes[classes < self.num_classes]]
        return loss.sum() / len(logits)

    def box_reg_loss(self, proposal_boxes: Tensor, gt_boxes: Tensor, pred_deltas: Tensor, gt_classes: Tensor) -> Tensor:
        """Regression loss of the proposals that hold an object, divided by the number of all proposals.

        In this way each proposal weighs the same, however many of its image hold an object.

        Args:
            proposal_boxes, gt_boxes: (R, 4) absolute xyxy.
            pred_deltas: (R, K * 4), or (R, 4) if class-agnostic.
            gt_classes: (R,), K for background.
        """
        box_dim = proposal_boxes.shape[1]
        objects = nonzero_tuple((gt_classes >= 0) & (gt_classes < self.num_classes))[0]
        if pred_deltas.shape[1] == box_dim:
            deltas = pred_deltas[objects]
        else:
            deltas = pred_deltas.view(-1, self.num_classes, box_dim)[objects, gt_classes[objects]]
        loss = _dense_box_regression_loss(
            [proposal_boxes[objects]],
            self.box2box_transform,
            [deltas[None]],
            [gt_boxes[objects]],
            ...,
            self.box_reg_loss_type,
            self.smooth_l1_beta,
        )
        return loss / max(gt_classes.numel(), 1.0)

    def inference(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> tuple[list[Instances], list[Tensor]]:
        """Detections; see `fast_rcnn_inference`.

        Args:
            predictions: what `forward` returned for all proposals in order.
            proposals: of each image, with `proposal_boxes`.
        """
        return fast_rcnn_inference(
            self.predict_boxes(predictions, proposals),
            self.predict_probs(predictions, proposals),
            [p.image_size for p in proposals],
            self.test_score_thresh,
            self.test_nms_thresh,
            self.test_topk_per_image,
        )

    def predict_boxes_for_gt_classes(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> list[Tensor]:
        """(R_i, 4) xyxy boxes of each image, predicted for the class that the ground truth says.

        Args:
            predictions: what `forward` returned for all proposals in order.
            proposals: of each image, with `proposal_boxes` and `gt_classes`.
        """
        boxes = []
        for of_image, instances in zip(self.predict_boxes(predictions, proposals), proposals, strict=True):
            by_class = of_image.unflatten(1, (-1, 4))
            # Background has no box of its own, nor have the classes of a class-agnostic prediction.
            classes = instances.gt_classes.clamp(0, by_class.shape[1] - 1)
            boxes.append(by_class[torch.arange(len(by_class), device=by_class.device), classes])
        return boxes

    def predict_boxes(self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]) -> list[Tensor]:
        """(R_i, K * 4) xyxy boxes of each image, or (R_i, 4) if class-agnostic.

        Args:
            predictions: what `forward` returned for all proposals in order.
            proposals: of each image, with `proposal_boxes`.
        """
        if not proposals:
            return []
        boxes = cat([p.proposal_boxes.tensor for p in proposals])
        return self.box2box_transform.apply_deltas(predictions[1], boxes).split(_counts(proposals))

    def predict_probs(self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]) -> list[Tensor]:
        """(R_i, K + 1) probabilities of each image; the last is of background.

        Args:
            predictions: what `forward` returned for all proposals in order.
            proposals: of each image, for their number.
        """
        scores = predictions[0]
        probs = scores.sigmoid() if self.use_sigmoid_ce else F.softmax(scores, dim=-1)
        return probs.split(_counts(proposals))
