"""Pascal VOC's average precision, as the development kits of 2007 and 2012 define it, in Python."""

import logging
import os
import xml.etree.ElementTree as ET
from collections import OrderedDict, defaultdict
from dataclasses import dataclass

import numpy as np
import torch

from detectron2.data import MetadataCatalog
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from .evaluator import DatasetEvaluator

_THRESHOLDS = range(50, 100, 5)


@dataclass
class _Object:
    name: str
    difficult: bool
    bbox: tuple[float, float, float, float]


@dataclass
class _Detections:
    """Detections of one class, best score first; boxes as VOC counts pixels, from 1 with both ends included."""

    image_ids: list[str]
    boxes: np.ndarray


class PascalVOCDetectionEvaluator(DatasetEvaluator):
    """AP (mean over IoU 0.5 to 0.95), AP50 and AP75, in percent, for task "bbox".

    Args:
        dataset_name: registered with `register_pascal_voc`; its metadata "year" chooses the metric.
    """

    def __init__(self, dataset_name: str):
        self._dataset_name = dataset_name
        meta = MetadataCatalog.get(dataset_name)
        self._annotation_dir = PathManager.get_local_path(os.path.join(meta.dirname, "Annotations/"))
        self._image_set_path = os.path.join(meta.dirname, "ImageSets", "Main", meta.split + ".txt")
        self._class_names = meta.thing_classes
        assert meta.year in [2007, 2012], meta.year
        self._is_2007 = meta.year == 2007
        self._cpu_device = torch.device("cpu")
        self._logger = logging.getLogger(__name__)
        self.reset()

    def reset(self) -> None:
        # class -> [image id, score, xmin, ymin, xmax, ymax]
        self._predictions: dict[int, list[tuple]] = defaultdict(list)

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        for input, output in zip(inputs, outputs, strict=False):
            instances = output["instances"].to(self._cpu_device)
            boxes = instances.pred_boxes.tensor.numpy()
            for box, score, cls in zip(boxes, instances.scores.tolist(), instances.pred_classes.tolist(), strict=True):
                xmin, ymin, xmax, ymax = box
                # VOC's result files start at pixel 1 and hold three and one decimals.
                corners = tuple(float(f"{x:.1f}") for x in (xmin + 1, ymin + 1, xmax, ymax))
                self._predictions[cls].append((input["image_id"], float(f"{score:.3f}"), *corners))

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """{"bbox": {"AP": …, "AP50": …, "AP75": …}} in the main process, None in the others."""
        gathered = comm.gather(self._predictions, dst=0)
        if not comm.is_main_process():
            return None
        predictions = defaultdict(list)
        for of_process in gathered:
            for cls, lines in of_process.items():
                predictions[cls].extend(lines)
        self._logger.info(
            f"Evaluating {self._dataset_name} using {2007 if self._is_2007 else 2012} metric. "
            "Note that results do not use the official Matlab API."
        )

        ground_truth = self._load_ground_truth()
        aps = {
            cls: _average_precisions(_sorted_detections(predictions[cls]), name, ground_truth, self._is_2007)
            for cls, name in enumerate(self._class_names)
        }
        mean_ap = {t: float(np.mean([ap[t] for ap in aps.values()])) for t in _THRESHOLDS}
        ap = {"AP": float(np.mean(list(mean_ap.values()))), "AP50": mean_ap[50], "AP75": mean_ap[75]}
        return OrderedDict(bbox=ap)

    def _load_ground_truth(self) -> dict[str, list[_Object]]:
        with PathManager.open(self._image_set_path) as f:
            image_ids = f.read().split()
        return {image_id: parse_rec(os.path.join(self._annotation_dir, image_id + ".xml")) for image_id in image_ids}


def parse_rec(filename: str) -> list[_Object]:
    """The objects of one VOC annotation file."""
    with PathManager.open(filename) as f:
        tree = ET.parse(f)
    return [
        _Object(
            name=obj.find("name").text,
            difficult=bool(int(obj.findtext("difficult", "0"))),
            bbox=tuple(float(obj.find("bndbox").find(side).text) for side in ("xmin", "ymin", "xmax", "ymax")),
        )
        for obj in tree.findall("object")
    ]


def voc_ap(rec: np.ndarray, prec: np.ndarray, use_07_metric: bool = False) -> float:
    """Average precision from recall and precision.

    Args:
        rec, prec: (N,) at each of N detections, best first.
        use_07_metric: the mean of the best precision at 11 recalls, instead of the area under the curve made
            monotonous.
    """
    if use_07_metric:
        return sum(float(np.max(prec[rec >= t], initial=0)) for t in np.arange(0.0, 1.1, 0.1)) / 11.0
    rec = np.concatenate([[0.0], rec, [1.0]])
    prec = np.concatenate([[0.0], prec, [0.0]])
    envelope = np.maximum.accumulate(prec[::-1])[::-1]
    return float(np.sum(np.diff(rec) * envelope[1:]))


def _sorted_detections(lines: list[tuple]) -> _Detections:
    values = np.array([line[1:] for line in lines], dtype=float).reshape(-1, 5)
    order = np.argsort(-values[:, 0])
    return _Detections([lines[i][0] for i in order], values[order, 1:])


def _overlaps(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU of a (4,) box with (N, 4) boxes, both ends of each included."""
    size = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2]) + 1.0
    intersection = np.maximum(size, 0.0).prod(axis=1)
    areas = (others[:, 2:] - others[:, :2] + 1.0).prod(axis=1)
    return intersection / ((box[2:] - box[:2] + 1.0).prod() + areas - intersection)


def _average_precisions(
    detections: _Detections, class_name: str, ground_truth: dict[str, list[_Object]], use_07_metric: bool
) -> dict[int, float]:
    """AP of one class in percent, for every IoU threshold in percent."""
    objects = {id: [obj for obj in objs if obj.name == class_name] for id, objs in ground_truth.items()}
    boxes = {id: np.array([obj.bbox for obj in objs], dtype=float).reshape(-1, 4) for id, objs in objects.items()}
    num_objects = sum(not obj.difficult for objs in objects.values() for obj in objs)

    matches = []  # of each detection: image, object it overlaps most, their IoU
    for image_id, box in zip(detections.image_ids, detections.boxes, strict=True):
        iou = _overlaps(box, boxes[image_id])
        best = int(np.argmax(iou)) if len(iou) else -1
        matches.append((image_id, best, iou[best] if len(iou) else -np.inf))

    def ap(threshold: float) -> float:
        found: set[tuple[str, int]] = set()
        true, false = np.zeros(len(matches)), np.zeros(len(matches))
        for i, (image_id, best, iou) in enumerate(matches):
            if iou <= threshold or (image_id, best) in found:
                false[i] = 1
            elif not objects[image_id][best].difficult:
                true[i] = 1
                found.add((image_id, best))
        true, false = np.cumsum(true), np.cumsum(false)
        with np.errstate(divide="ignore", invalid="ignore"):  # a class without objects
            recall = true / float(num_objects)
        precision = true / np.maximum(true + false, np.finfo(np.float64).eps)
        return voc_ap(recall, precision, use_07_metric) * 100

    return {threshold: ap(threshold / 100.0) for threshold in _THRESHOLDS}
