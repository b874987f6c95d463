"""What a page shows of a detector: boxes after any stage, colored by class or level, as pictures, table and file."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image

from ..detections import Detections
from ..errors import InputError
from .drawing import PredictionDrawer


@dataclass
class Found:
    """A picture and what was found on it.

    Attributes:
        name: of the picture.
        picture: (H, W, 3) uint8 RGB.
        final: detections of any score, best first.
        stages: the proposals after each refinement stage, with their `levels`; row i is the same proposal in each.
            Empty for a model without stages.
    """

    name: str
    picture: np.ndarray
    final: Instances
    stages: list[Instances] = field(default_factory=list)


class Model(Protocol):
    """A detector of any kind.

    Attributes:
        class_names: of all classes.
        threshold: lowest score that its users see.
        num_stages: refinement stages whose boxes it shows, 0 for none.
        levels: of the pyramid that its boxes read.
    """

    class_names: list[str]
    threshold: float
    num_stages: int
    levels: tuple[int, ...]

    def find(self, picture: np.ndarray) -> tuple[Instances, list[Instances]]:
        """`final` and `stages` of `Found` for an (H, W, 3) uint8 RGB picture."""
        ...


class CheckpointModel:
    """A checkpoint that was trained here; see `Model`."""

    def __init__(self, path: str):
        from ..predictor import Detector, Predictor  # late: it imports this package

        detector = Detector.from_checkpoint(path)
        cfg = detector.cfg
        self._predictor = Predictor(cfg)
        self.class_names, self.threshold = detector.class_names, detector.threshold
        self.num_stages = cfg.MODEL.SparseRCNN.NUM_HEADS if self._predictor.has_stages else 0
        self.levels = tuple(int(re.sub(r"\D", "", name)) for name in cfg.MODEL.ROI_HEADS.IN_FEATURES)

    def find(self, picture: np.ndarray) -> tuple[Instances, list[Instances]]:
        stages = self._predictor.stages(picture)[1:] if self.num_stages else []
        return self._predictor(picture), stages


class ExportedModel:
    """A file that `tools/export.py` wrote; see `Model`.

    Args:
        path: of the file.
        precision: of OpenVINO, "f32" or "bf16".
    """

    num_stages = 0
    levels: tuple[int, ...] = ()

    def __init__(self, path: str, precision: str = "f32"):
        try:
            from sparsercnn_runtime import OnnxDetector
        except ImportError as error:
            raise InputError(f"{path} needs the runner: pip install './runtime[onnxruntime]'") from error
        try:
            self._detector = OnnxDetector(path, precision=precision)
        except (ImportError, OSError, ValueError) as error:
            raise InputError(str(error)) from error
        self.class_names = self._detector.metadata["class_names"]
        self.threshold = self._detector.metadata["threshold"]

    def find(self, picture: np.ndarray) -> tuple[Instances, list[Instances]]:
        boxes, scores, classes = map(torch.from_numpy, self._detector.detect(Image.fromarray(picture)))
        return Instances(picture.shape[:2], pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes), []


def open_model(path: str) -> Model:
    """The detector of a file, by its suffix.

    Raises:
        InputError: the file is none, or its runner is not installed.
    """
    return ExportedModel(path) if Path(path).suffix in (".onnx", ".xml") else CheckpointModel(path)


class Page:
    """Finds, draws and lists.

    Args:
        model: finds.
    """

    headers = ("picture", "class", "score", "x0", "y0", "x1", "y1")

    def __init__(self, model: Model):
        self._model = model
        self.threshold, self.stages = model.threshold, model.num_stages
        self.title = f"Detect {', '.join(model.class_names[:5])}{', …' if len(model.class_names) > 5 else ''}"

    def find(self, name: str, picture: np.ndarray) -> Found:
        """What is on a (H, W, 3) uint8 RGB picture."""
        return Found(name, picture, *self._model.find(picture))

    def draw(self, found: Found, threshold: float, stage: int, color_by: str) -> np.ndarray:
        """The picture with boxes, (H, W, 3) uint8 RGB.

        Args:
            found: of `find`.
            threshold: lowest score; before the last stage that of the proposal in the end.
            stage: from 1 on, whose boxes are drawn; the last ones are the detections.
            color_by: "class", or "level" for the pyramid level that a box reads.
        """
        drawer = PredictionDrawer(self._model.class_names, -1.0, color_by, self._model.levels)
        if found.stages and (stage < self.stages or color_by == "level"):
            kept = found.stages[-1].scores > threshold
            return drawer.draw(found.picture, found.stages[stage - 1][kept])
        return drawer.draw(found.picture, found.final[found.final.scores > threshold])

    def table(self, found: list[Found], threshold: float) -> list[list[Any]]:
        """A row for each detection, see `headers`; boxes are in pixels of the picture."""
        return [
            [f.name, d.name, round(d.score, 3), *(round(x, 1) for x in d.box)]
            for f in found
            for d in self._detections(f, threshold)
        ]

    def to_coco(self, found: list[Found], threshold: float) -> str:
        """COCO results as JSON; an image_id is the name of a picture."""
        results = [r for f in found for r in self._detections(f, threshold).to_coco(image_id=f.name)]
        return json.dumps(results, indent=1)

    def _detections(self, found: Found, threshold: float) -> Detections:
        kept = found.final[found.final.scores > threshold]
        return Detections(found.picture, kept, self._model.class_names)
