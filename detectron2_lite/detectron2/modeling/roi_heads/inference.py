"""From class scores and boxes of proposals to detections.

Girshick, Fast R-CNN, ICCV 2015.
"""

from torch import Tensor

from detectron2.layers import batched_nms, nonzero_tuple
from detectron2.structures import Boxes, Instances


def fast_rcnn_inference(
    boxes: list[Tensor],
    scores: list[Tensor],
    image_shapes: list[tuple[int, int]],
    score_thresh: float,
    nms_thresh: float,
    topk_per_image: int,
) -> tuple[list[Instances], list[Tensor]]:
    """`fast_rcnn_inference_single_image` for each image.

    Returns:
        Detections of each image, and which of its proposals each of them comes from.
    """
    per_image = [
        fast_rcnn_inference_single_image(b, s, shape, score_thresh, nms_thresh, topk_per_image)
        for b, s, shape in zip(boxes, scores, image_shapes, strict=True)
    ]
    return [detections for detections, _ in per_image], [proposals for _, proposals in per_image]


def fast_rcnn_inference_single_image(
    boxes: Tensor,
    scores: Tensor,
    image_shape: tuple[int, int],
    score_thresh: float,
    nms_thresh: float,
    topk_per_image: int,
) -> tuple[Instances, Tensor]:
    """Detections above a score, after non-maximum suppression within each class.

    Args:
        boxes: (R, K * 4) absolute xyxy boxes of every class, or (R, 4) of all classes, for R proposals. Proposals with
            a box or score that is not finite are dropped.
        scores: (R, K + 1), the last is background.
        image_shape: (height, width) to which boxes are clipped.
        score_thresh: detections that do not score more are dropped.
        nms_thresh: IoU above which the worse of two detections of a class is dropped.
        topk_per_image: detections to return at most; negative for all.

    Returns:
        `Instances` with `pred_boxes`, `scores` and `pred_classes`, best first, and the (N,) index of the (finite)
        proposal that each comes from.
    """
    finite = boxes.isfinite().all(dim=1) & scores.isfinite().all(dim=1)
    # Indexed even if all are finite: a traced graph must not remember that they were.
    boxes, scores = boxes[finite], scores[finite, :-1]
    clipped = Boxes(boxes.reshape(-1, 4))
    clipped.clip(image_shape)
    boxes = clipped.tensor.view(-1, boxes.shape[1] // 4, 4)

    chosen = scores > score_thresh
    proposals, classes = nonzero_tuple(chosen)
    boxes = boxes[proposals, 0] if boxes.shape[1] == 1 else boxes[chosen]
    scores = scores[chosen]
    keep = batched_nms(boxes, scores, classes, nms_thresh)
    if topk_per_image >= 0:
        keep = keep[:topk_per_image]
    detections = Instances(image_shape, pred_boxes=Boxes(boxes[keep]), scores=scores[keep], pred_classes=classes[keep])
    return detections, proposals[keep]
