"""Draw boxes with labels, lines and text on an image, sharp at any scale thanks to matplotlib."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from enum import Enum, unique

import matplotlib as mpl
import matplotlib.colors as mplc
import matplotlib.figure as mplfigure
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances

from .colormap import random_color

__all__ = ["ColorMode", "VisImage", "Visualizer"]

_SMALL_OBJECT_AREA_THRESH = 1000


@unique
class ColorMode(Enum):
    """How instances are colored."""

    IMAGE = 0
    """A random color for every instance, on the image as it is."""
    SEGMENTATION = 1
    """Instances of one category get similar colors, from `metadata.thing_colors`."""
    IMAGE_BW = 2
    """As IMAGE, on the image in gray."""


class VisImage:
    """An image to draw on through `self.ax`, a matplotlib axis whose data units are pixels of the image.

    Args:
        img: (H, W, 3) RGB, values 0 to 255.
        scale: size of the output relative to the image.
    """

    def __init__(self, img: np.ndarray, scale: float = 1.0) -> None:
        self.img = img
        self.scale = scale
        self.height, self.width = img.shape[:2]
        self._setup_figure(img)

    def _setup_figure(self, img: np.ndarray) -> None:
        self.fig = mplfigure.Figure(frameon=False)
        self.dpi = self.fig.get_dpi()
        # The hundredth of a pixel keeps matplotlib's truncation from losing a whole one.
        inches = [(size * self.scale + 1e-2) / self.dpi for size in (self.width, self.height)]
        self.fig.set_size_inches(*inches)
        self.canvas = FigureCanvasAgg(self.fig)
        self.ax = self.fig.add_axes([0.0, 0.0, 1.0, 1.0])
        self.ax.axis("off")
        self.reset_image(img)

    def reset_image(self, img: np.ndarray) -> None:
        """Put another image of the same size underneath what is drawn."""
        self.ax.imshow(img.astype("uint8"), extent=(0, self.width, self.height, 0), interpolation="nearest")

    def save(self, filepath: str) -> None:
        """Save the picture; the extension decides the format."""
        self.fig.savefig(filepath)

    def get_image(self) -> np.ndarray:
        """The picture as (H * scale, W * scale, 3) uint8 in RGB."""
        buffer, (width, height) = self.canvas.print_to_buffer()
        return np.frombuffer(buffer, dtype="uint8").reshape(height, width, 4)[:, :, :3].copy()


class Visualizer:
    """Draw instances, ground truth, or single boxes, texts and lines on an image.

    Args:
        img_rgb: (H, W, 3) RGB, values 0 to 255.
        metadata: of the dataset, for `thing_classes` and `thing_colors`.
        scale: size of the output relative to the image.
        instance_mode: how instances are colored.
    """

    def __init__(
        self, img_rgb: np.ndarray, metadata=None, scale: float = 1.0, instance_mode: ColorMode = ColorMode.IMAGE
    ) -> None:
        self.img = np.asarray(img_rgb).clip(0, 255).astype(np.uint8)
        self.metadata = MetadataCatalog.get("__nonexist__") if metadata is None else metadata
        self.output = VisImage(self.img, scale=scale)
        self.cpu_device = torch.device("cpu")
        # Text has to stay readable on small images too.
        self._default_font_size = max(np.sqrt(self.output.height * self.output.width) // 90, 10 // scale)
        self._instance_mode = instance_mode

    def draw_instance_predictions(self, predictions: Instances, jittering: bool = True) -> VisImage:
        """Draw predicted boxes with class names and scores.

        Args:
            predictions: on the CPU, with any of `pred_boxes`, `pred_classes`, `scores`.
            jittering: in SEGMENTATION mode, vary the color of a category a little from instance to instance.
        """
        boxes = predictions.pred_boxes if predictions.has("pred_boxes") else None
        scores = predictions.scores if predictions.has("scores") else None
        classes = predictions.pred_classes.tolist() if predictions.has("pred_classes") else None
        labels = _create_text_labels(classes, scores, self.metadata.get("thing_classes", None))
        colors = self._category_colors(classes, jittering)
        alpha = 0.5 if colors is None else 0.8
        if self._instance_mode == ColorMode.IMAGE_BW:
            self.output.reset_image(self._create_grayscale_image())
            alpha = 0.3
        return self.overlay_instances(boxes=boxes, labels=labels, assigned_colors=colors, alpha=alpha)

    def draw_dataset_dict(self, dic: dict) -> VisImage:
        """Draw the boxes and class names of the annotations of a dataset dict."""
        annotations = dic.get("annotations", None)
        if not annotations:
            return self.output
        classes = [annotation["category_id"] for annotation in annotations]
        labels = _create_text_labels(
            classes,
            scores=None,
            class_names=self.metadata.get("thing_classes", None),
            is_crowd=[annotation.get("iscrowd", 0) for annotation in annotations],
        )
        boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
        return self.overlay_instances(boxes=boxes, labels=labels, assigned_colors=self._category_colors(classes))

    def _category_colors(self, classes: list[int] | None, jittering: bool = True) -> list[tuple] | None:
        palette = self.metadata.get("thing_colors", None)
        if self._instance_mode != ColorMode.SEGMENTATION or not palette or classes is None:
            return None
        colors = [tuple(channel / 255 for channel in palette[c]) for c in classes]
        return [self._jitter(color) for color in colors] if jittering else colors

    def overlay_instances(
        self,
        *,
        boxes: Boxes | np.ndarray | Sequence | None = None,
        labels: Sequence[str] | None = None,
        assigned_colors: Sequence | None = None,
        alpha: float = 0.5,
    ) -> VisImage:
        """Draw boxes, the largest first so that small ones stay visible, each with its label at a corner.

        Args:
            boxes: N boxes, absolute xyxy.
            labels: a text for each box.
            assigned_colors: a matplotlib color for each box, random ones if None.
            alpha: opacity of what is filled. Boxes are outlines, always drawn at half opacity.
        """
        boxes = np.zeros((0, 4)) if boxes is None else self._convert_boxes(boxes)
        if labels is not None:
            assert len(labels) == len(boxes)
        if assigned_colors is None:
            assigned_colors = [random_color(rgb=True, maximum=1) for _ in boxes]
        if len(boxes) == 0:
            return self.output

        areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
        for i in np.argsort(-areas).tolist():
            self.draw_box(boxes[i], edge_color=assigned_colors[i])
            if labels is not None:
                self._draw_label(labels[i], boxes[i], assigned_colors[i])
        return self.output

    def _draw_label(self, label: str, box: np.ndarray, color) -> None:
        x0, y0, x1, y1 = box
        position = (x0, y0)
        # In a small box the text would hide the object, so it goes below, or beside the box at the bottom of the image.
        scale = self.output.scale
        if (y1 - y0) * (x1 - x0) < _SMALL_OBJECT_AREA_THRESH * scale or y1 - y0 < 40 * scale:
            position = (x1, y0) if y1 >= self.output.height - 5 else (x0, y1)
        height_ratio = (y1 - y0) / np.sqrt(self.output.height * self.output.width)
        self.draw_text(
            label,
            position,
            color=self._change_color_brightness(color, brightness_factor=0.7),
            horizontal_alignment="left",
            font_size=np.clip((height_ratio - 0.02) / 0.08 + 1, 1.2, 2) * 0.5 * self._default_font_size,
        )

    def draw_text(
        self,
        text: str,
        position: Sequence[float],
        *,
        font_size: float | None = None,
        color="g",
        horizontal_alignment: str = "center",
        rotation: float = 0,
    ) -> VisImage:
        """Write a text on a dark background.

        Args:
            position: x and y of the top of the text; which point of the top, says the alignment.
            font_size: chosen by the size of the image if None.
            rotation: in degrees, counter-clockwise.
        """
        # On the dark background, dark colors would not be readable.
        color = np.maximum(mplc.to_rgb(color), 0.2)
        color[np.argmax(color)] = max(0.8, np.max(color))
        self.output.ax.text(
            *position,
            text,
            size=(font_size or self._default_font_size) * self.output.scale,
            family="sans-serif",
            bbox={"facecolor": "black", "alpha": 0.8, "pad": 0.7, "edgecolor": "none"},
            verticalalignment="top",
            horizontalalignment=horizontal_alignment,
            color=color,
            zorder=10,
            rotation=rotation,
        )
        return self.output

    def draw_box(self, box_coord: Sequence[float], alpha: float = 0.5, edge_color="g", line_style="-") -> VisImage:
        """Draw the outline of a box.

        Args:
            box_coord: absolute xyxy.
            alpha: opacity.
            edge_color: a matplotlib color.
            line_style: a matplotlib line style.
        """
        x0, y0, x1, y1 = box_coord
        rectangle = mpl.patches.Rectangle(
            (x0, y0),
            x1 - x0,
            y1 - y0,
            fill=False,
            edgecolor=edge_color,
            linewidth=max(self._default_font_size / 4, 1) * self.output.scale,
            alpha=alpha,
            linestyle=line_style,
        )
        self.output.ax.add_patch(rectangle)
        return self.output

    def draw_circle(self, circle_coord: Sequence[float], color, radius: float = 3) -> VisImage:
        """Draw a filled circle around (x, y)."""
        self.output.ax.add_patch(mpl.patches.Circle(circle_coord, radius=radius, fill=True, color=color))
        return self.output

    def draw_line(
        self,
        x_data: Sequence[float],
        y_data: Sequence[float],
        color,
        linestyle: str = "-",
        linewidth: float | None = None,
    ) -> VisImage:
        """Draw a line through the given points."""
        if linewidth is None:
            linewidth = self._default_font_size / 3
        linewidth = max(linewidth, 1) * self.output.scale
        line = mpl.lines.Line2D(x_data, y_data, linewidth=linewidth, color=color, linestyle=linestyle)
        self.output.ax.add_line(line)
        return self.output

    def draw_polygon(self, segment: np.ndarray, color, edge_color=None, alpha: float = 0.5) -> VisImage:
        """Draw a filled polygon with an opaque edge.

        Args:
            segment: (N, 2), the corners.
            edge_color: the color itself if None, darker if the filling is nearly opaque.
            alpha: opacity of the filling.
        """
        if edge_color is None:
            edge_color = self._change_color_brightness(color, brightness_factor=-0.7) if alpha > 0.8 else color
        polygon = mpl.patches.Polygon(
            segment,
            fill=True,
            facecolor=mplc.to_rgb(color) + (alpha,),
            edgecolor=mplc.to_rgb(edge_color) + (1,),
            linewidth=max(self._default_font_size // 15 * self.output.scale, 1),
        )
        self.output.ax.add_patch(polygon)
        return self.output

    def get_output(self) -> VisImage:
        return self.output

    def _jitter(self, color) -> tuple[float, float, float]:
        """The color moved by a random positive vector of length 0.5, clipped to [0, 1]."""
        vec = np.random.rand(3)
        return tuple(np.clip(mplc.to_rgb(color) + vec / np.linalg.norm(vec) * 0.5, 0, 1))

    def _create_grayscale_image(self) -> np.ndarray:
        return np.repeat(self.img.astype("f4").mean(axis=2, keepdims=True), 3, axis=2)

    def _change_color_brightness(self, color, brightness_factor: float) -> tuple[float, float, float]:
        """The color with its lightness raised (factor up to 1) or lowered (down to -1) by that share."""
        assert -1.0 <= brightness_factor <= 1.0
        hue, lightness, saturation = colorsys.rgb_to_hls(*mplc.to_rgb(color))
        lightness = min(max(lightness * (1 + brightness_factor), 0.0), 1.0)
        return tuple(np.clip(colorsys.hls_to_rgb(hue, lightness, saturation), 0.0, 1.0))

    def _convert_boxes(self, boxes: Boxes | np.ndarray | Sequence) -> np.ndarray:
        return boxes.tensor.detach().numpy() if isinstance(boxes, Boxes) else np.asarray(boxes)


def _create_text_labels(
    classes: list[int] | None,
    scores: Sequence[float] | None,
    class_names: list[str] | None,
    is_crowd: list[bool] | None = None,
) -> list[str] | None:
    """Class name and score of each instance, "name 97%", or the one that is known; "|crowd" marks crowds."""
    labels = None
    if classes is not None:
        labels = [class_names[c] if class_names else str(c) for c in classes]
    if scores is not None:
        percents = [f"{s * 100:.0f}%" for s in scores]
        labels = percents if labels is None else [f"{label} {p}" for label, p in zip(labels, percents, strict=True)]
    if labels is not None and is_crowd is not None:
        labels = [label + ("|crowd" if crowd else "") for label, crowd in zip(labels, is_crowd, strict=True)]
    return labels
