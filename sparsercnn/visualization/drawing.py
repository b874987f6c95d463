"""Pictures of what the detector does: its predictions, and how the boxes converge from stage to stage."""

import math

import numpy as np
from detectron2.structures import Instances
from torch import Tensor

from .canvas import PALETTE, class_color, draw_boxes, enlarge, text_strip

MAX_COLUMNS = 4


class PredictionDrawer:
    """Draws predictions with detectron2's `Visualizer`, colored by what one wants to see.

    Args:
        class_names: of the classes, for labels; their numbers if None.
        threshold: leave out predictions with a lower score.
        color_by: "class", or "level" for the pyramid level that each box reads, which adds a legend.
        levels: levels of the pyramid, for the legend.
    """

    def __init__(
        self, class_names: list[str] | None, threshold: float, color_by: str = "class", levels: tuple[int, ...] = ()
    ):
        self.class_names = class_names
        self.threshold = threshold
        self.color_by = color_by
        self.levels = levels

    def draw(self, picture: np.ndarray, predictions: Instances) -> np.ndarray:
        """Predictions on a (H, W, 3) RGB picture, enlarged if labels need that, above the legend if there is one."""
        confident = predictions[predictions.scores > self.threshold]
        return self._with_legend(self._overlay(picture, confident))

    def draw_stages(self, picture: np.ndarray, stages: list[Instances]) -> np.ndarray:
        """One panel for the proposals and each stage, with the proposals that are confident in the end.

        Args:
            picture: (H, W, 3) RGB.
            stages: as `predict_stages` returns them for this picture.
        """
        kept = stages[-1].scores > self.threshold
        titles = ["proposals", *(f"stage {i}" for i in range(1, len(stages)))]
        titles[-1] += f": {int(kept.sum())} objects above {self.threshold:.0%}"
        final_classes = stages[-1].pred_classes[kept]
        panels = []
        for title, stage in zip(titles, stages, strict=True):
            # A proposal keeps the color of its final class in all panels, so that the eye can follow it.
            drawn = self._overlay(picture, stage[kept], final_classes)
            panels.append(np.vstack([text_strip(drawn.shape[1], [(title, "white")]), drawn]))
        return self._with_legend(tile(panels))

    def _overlay(self, picture: np.ndarray, instances: Instances, classes: Tensor | None = None) -> np.ndarray:
        if self.color_by == "level":
            colors = [level_color(level) for level in instances.levels.tolist()]
        else:
            classes = instances.pred_classes if classes is None else classes
            colors = [class_color(c) for c in classes.tolist()]
        picture, factor = enlarge(picture)
        return draw_boxes(picture, factor * instances.pred_boxes.tensor.numpy(), self._labels(instances), colors)

    def _labels(self, instances: Instances) -> list[str]:
        if not instances.has("scores"):
            return [""] * len(instances)
        names = [self.class_names[c] if self.class_names else str(c) for c in instances.pred_classes.tolist()]
        return [f"{name} {score:.0%}" for name, score in zip(names, instances.scores.tolist(), strict=True)]

    def _with_legend(self, drawn: np.ndarray) -> np.ndarray:
        if self.color_by != "level":
            return drawn
        entries = [(f"p{level}", level_color(level)) for level in self.levels]
        return np.vstack([drawn, text_strip(drawn.shape[1], [("reads level", "white"), *entries])])


def level_color(level: int) -> np.ndarray:
    """Color, RGB from 0 to 1, of boxes that read this level of the pyramid."""
    return PALETTE[level % len(PALETTE)]


def tile(panels: list[np.ndarray]) -> np.ndarray:
    """Panels of one size as a grid of at most MAX_COLUMNS columns, the empty cells black."""
    rows = math.ceil(len(panels) / MAX_COLUMNS)
    columns = math.ceil(len(panels) / rows)
    panels = panels + [np.zeros_like(panels[0])] * (rows * columns - len(panels))
    return np.vstack([np.hstack(panels[i * columns : (i + 1) * columns]) for i in range(rows)])
