"""What was found on a picture: printed, iterated, drawn, and turned into what other programs take."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from detectron2.structures import BoxMode, Instances
from PIL import Image

from .errors import InputError
from .visualization.drawing import PredictionDrawer

if TYPE_CHECKING:
    import pandas
    import supervision

ROWS_PRINTED = 20


@dataclass(frozen=True)
class Detection:
    """One object: number and name of its class, score, and box x0, y0, x1, y1 in pixels of the picture."""

    class_id: int
    name: str
    score: float
    box: tuple[float, float, float, float]


class Detections:
    """The objects of one picture, best first.

    Args:
        picture: (H, W, 3) uint8 RGB.
        instances: on the CPU, with `pred_boxes` absolute xyxy, `scores` and `pred_classes`.
        class_names: of all classes.
    """

    def __init__(self, picture: np.ndarray, instances: Instances, class_names: list[str]):
        self.picture = picture
        self.instances = instances
        self.class_names = class_names

    def __len__(self) -> int:
        return len(self.instances)

    def __getitem__(self, index: int) -> Detection:
        return list(self)[index]

    def __iter__(self) -> Iterator[Detection]:
        instances = self.instances
        columns = instances.pred_classes.tolist(), instances.scores.tolist(), instances.pred_boxes.tensor.tolist()
        for class_id, score, box in zip(*columns, strict=True):
            yield Detection(class_id, self.class_names[class_id], score, tuple(box))

    def __repr__(self) -> str:
        height, width = self.picture.shape[:2]
        lines = [f"{len(self)} objects on a picture of {width}×{height} pixels"]
        for detection in list(self)[:ROWS_PRINTED]:
            box = ", ".join(f"{x:.0f}" for x in detection.box)
            lines.append(f"  {detection.score:4.0%}  {detection.name}  ({box})")
        if len(self) > ROWS_PRINTED:
            lines.append(f"  … and {len(self) - ROWS_PRINTED} more")
        return "\n".join(lines)

    def draw(self) -> np.ndarray:
        """The picture with boxes and labels, (H, W, 3) uint8 RGB; a small picture is enlarged."""
        return PredictionDrawer(self.class_names, threshold=0.0).draw(self.picture, self.instances)

    def save(self, path: str | Path) -> None:
        """Write the drawn picture in the format that the suffix names.

        Raises:
            InputError: the file cannot be written, or there is no such format.
        """
        try:
            Image.fromarray(self.draw()).save(path)
        except (OSError, ValueError) as error:
            raise InputError(f"cannot write {path}: {error}") from error

    def _repr_png_(self) -> bytes:
        """The drawn picture, which notebooks show."""
        file = io.BytesIO()
        Image.fromarray(self.draw()).save(file, "png")
        return file.getvalue()

    def to_coco(self, image_id: int | str = 0) -> list[dict[str, Any]]:
        """COCO results, a dict for each object: image_id, category_id (the class), bbox (absolute xywh) and score."""
        boxes = BoxMode.convert(self.instances.pred_boxes.tensor, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS).tolist()
        return [
            {"image_id": image_id, "category_id": detection.class_id, "bbox": box, "score": detection.score}
            for detection, box in zip(self, boxes, strict=True)
        ]

    def to_dataframe(self) -> "pandas.DataFrame":
        """A row for each object, with columns class_id, name, score, x0, y0, x1, y1.

        Raises:
            InputError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise InputError("to_dataframe needs pandas: pip install pandas") from error
        columns = ["class_id", "name", "score", "x0", "y0", "x1", "y1"]
        return pandas.DataFrame([(d.class_id, d.name, d.score, *d.box) for d in self], columns=columns)

    def to_supervision(self) -> "supervision.Detections":
        """The same as `supervision.Detections`.

        Raises:
            InputError: supervision is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise InputError("to_supervision needs supervision: pip install supervision") from error
        names = [self.class_names[c] for c in self.instances.pred_classes.tolist()]
        return supervision.Detections(
            xyxy=self.instances.pred_boxes.tensor.numpy(),
            confidence=self.instances.scores.numpy(),
            class_id=self.instances.pred_classes.numpy(),
            data={"class_name": np.array(names)},
        )
