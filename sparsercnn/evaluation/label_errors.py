"""Labels that a trained model disagrees with confidently: most likely mistakes first.

After Tkachenko et al., ObjectLab: Automated Diagnosis of Mislabeled Images in Object Detection Data, 2023, which tells
objects that were overlooked, that have another class, and whose box is off.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from detectron2.structures import pairwise_iou
from torch import Tensor

from .results import ImageResult

# A model that is less sure says nothing about a label.
CONFIDENT = 0.5
# Overlap (IoU) with an object from which on a box is of that object, and from which on it fits.
TOUCHES, FITS = 0.3, 0.5
# A score below which the model has not seen an object at all.
UNSEEN = 0.1


@dataclass
class LabelError:
    """A disagreement between a label and the model.

    Attributes:
        kind: "overlooked" (the model sees an object that has no label), "other class", "box off", or "nothing there"
            (a label where the model sees nothing).
        likelihood: 0 to 1, how sure the model is.
        result: the image.
        box: (4,) absolute xyxy, what it is about.
        label: class that the annotation says, None if there is none.
        found: class that the model says, None if it sees nothing.
    """

    kind: str
    likelihood: float
    result: ImageResult
    box: Tensor
    label: int | None
    found: int | None


def find_label_errors(results: Sequence[ImageResult]) -> list[LabelError]:
    """What a model disagrees with, in order of its confidence.

    A model that has learned these labels by heart agrees with them: look at a split that it was not trained on, or at a
    short training.

    Args:
        results: labels and detections of each image.
    """
    errors = [error for result in results for error in _of_image(result)]
    return sorted(errors, key=lambda error: -error.likelihood)


def _of_image(result: ImageResult) -> Iterator[LabelError]:
    found, objects = result.above(CONFIDENT), result.objects
    in_crowd = result.matches(CONFIDENT).is_ignored
    overlaps = pairwise_iou(found.pred_boxes, objects.gt_boxes)
    taken = set()
    overlooked: list[int] = []
    twins = pairwise_iou(found.pred_boxes, found.pred_boxes) >= FITS
    for i in found.scores.argsort(descending=True).tolist():
        if in_crowd[i]:
            continue
        score, category, box = float(found.scores[i]), int(found.pred_classes[i]), found.pred_boxes.tensor[i]
        overlap, j = overlaps[i].max(0) if len(objects) else (0.0, 0)
        label = int(objects.gt_classes[j]) if len(objects) else None
        if overlap < TOUCHES:
            if twins[i, overlooked].any():
                continue  # the same object, found twice
            overlooked.append(i)
            yield LabelError("overlooked", score, result, box, None, category)
        elif label != category:
            others = (found.pred_classes == label) & (overlaps[:, j] >= TOUCHES)
            if not others.any() and int(j) not in taken:
                taken.add(int(j))
                yield LabelError("other class", score, result, box, label, category)
        elif overlap < FITS and not (overlaps[:, j] >= FITS).any() and int(j) not in taken:
            taken.add(int(j))
            yield LabelError("box off", score * (1 - float(overlap)), result, box, label, category)
    everything = pairwise_iou(result.detections.pred_boxes, objects.gt_boxes)
    for j in range(len(objects)):
        seen = result.detections.scores[everything[:, j] >= TOUCHES]
        best = float(seen.max()) if len(seen) else 0.0
        if best < UNSEEN and j not in taken:
            box, label = objects.gt_boxes.tensor[j], int(objects.gt_classes[j])
            # An object that is missed says less than one that is found: the model may be too weak for it.
            yield LabelError("nothing there", 0.5 * (1 - best), result, box, label, None)
