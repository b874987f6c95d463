"""Draw the boxes of a video, with a color for each object that stays the same from frame to frame."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils.visualizer import ColorMode, VisImage, Visualizer, _create_text_labels

from .colormap import random_color

_IOU_THRESHOLD = 0.6


@dataclass(eq=False)
class _DetectedInstance:
    """One object seen in this frame or shortly before.

    Attributes:
        label: its class.
        bbox: (4,) absolute xyxy.
        color: (3,) RGB in [0, 1]; None until one is assigned.
        ttl: for how many frames more it is remembered without being seen.
    """

    label: int
    bbox: np.ndarray
    color: np.ndarray | None = None
    ttl: int = 8


class VideoVisualizer:
    """`Visualizer` for the frames of one video, given in their order.

    An object keeps its color as long as a box of the same class overlaps its last one by an IoU above 0.6, also when
    a few frames miss it.

    Args:
        metadata: of the dataset, for `thing_classes`.
        instance_mode: `ColorMode.IMAGE` or `ColorMode.IMAGE_BW`.
    """

    def __init__(self, metadata, instance_mode: ColorMode = ColorMode.IMAGE) -> None:
        self.metadata = metadata
        self._old_instances: list[_DetectedInstance] = []
        assert instance_mode in [ColorMode.IMAGE, ColorMode.IMAGE_BW], "Other mode not supported yet."
        self._instance_mode = instance_mode

    def draw_instance_predictions(self, frame: np.ndarray, predictions: Instances) -> VisImage:
        """Draw the predictions of the next frame.

        Args:
            frame: (H, W, 3) RGB.
            predictions: on the CPU, with `pred_boxes`, `pred_classes` and `scores`.
        """
        visualizer = Visualizer(frame, self.metadata)
        if len(predictions) == 0:
            return visualizer.output
        boxes = predictions.pred_boxes.tensor.numpy() if predictions.has("pred_boxes") else None
        scores = predictions.scores if predictions.has("scores") else None
        classes = predictions.pred_classes.numpy() if predictions.has("pred_classes") else None
        detected = [_DetectedInstance(label, box) for label, box in zip(classes, boxes, strict=True)]
        alpha = 0.5
        if self._instance_mode == ColorMode.IMAGE_BW:
            visualizer.output.reset_image(visualizer._create_grayscale_image())
            alpha = 0.3
        return visualizer.overlay_instances(
            boxes=boxes,
            labels=_create_text_labels(classes, scores, self.metadata.get("thing_classes", None)),
            assigned_colors=self._assign_colors(detected),
            alpha=alpha,
        )

    def _assign_colors(self, instances: list[_DetectedInstance]) -> list[np.ndarray]:
        """Colors for the objects of this frame: that of the old object each continues, or a random one."""
        missed = []
        for old, ious in zip(self._old_instances, self._ious_with_old(instances), strict=True):
            best = int(ious.argmax())
            if ious[best] > _IOU_THRESHOLD and instances[best].color is None:
                instances[best].color = old.color
                continue
            # The detector may have missed it in this frame only.
            old.ttl -= 1
            if old.ttl > 0:
                missed.append(old)
        for instance in instances:
            if instance.color is None:
                instance.color = random_color(rgb=True, maximum=1)
        self._old_instances = instances + missed
        return [instance.color for instance in instances]

    def _ious_with_old(self, instances: list[_DetectedInstance]) -> np.ndarray:
        """(old, new) IoU of boxes, 0 between different classes."""
        if not self._old_instances:
            return np.zeros((0, len(instances)))
        old_boxes, new_boxes = (Boxes(np.stack([x.bbox for x in group])) for group in (self._old_instances, instances))
        same = np.array([[old.label == new.label for new in instances] for old in self._old_instances])
        return pairwise_iou(old_boxes, new_boxes).numpy() * same
