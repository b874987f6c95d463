"""Boxes with labels that can be read at any size of picture, drawn with detectron2's `Visualizer`."""

from collections.abc import Sequence

import numpy as np
from detectron2.utils.colormap import colormap
from detectron2.utils.visualizer import Visualizer
from PIL import Image

PALETTE = colormap(rgb=True, maximum=1)
DRAWN_SIZE = 480  # pixels of the longer side that smaller pictures are enlarged to
STRIP_HEIGHT = 32  # pixels of a line of text above or below a picture

# Of text, as a share of the picture's longer side, so that pictures look the same at any resolution.
TEXT_HEIGHT = 0.022
MIN_TEXT_HEIGHT = 10.0  # pixels
LABEL_HEIGHT = 1.35  # of a label with its margins, relative to the text
TEXT_WHITENESS = 0.6  # of a label, mixed into the color of its box: some are hard to read on the dark ground of labels
LETTER_WIDTH = 0.72  # about that of a letter, relative to the height of the text

# matplotlib measures text in points, of which the Visualizer's pictures have 72 in 100 pixels.
POINTS_PER_PIXEL = 0.72


def class_color(index: int) -> np.ndarray:
    """Color, RGB from 0 to 1, of everything of this class, in every picture."""
    return PALETTE[index % len(PALETTE)]


def enlarge(picture: np.ndarray) -> tuple[np.ndarray, float]:
    """A (H, W, 3) uint8 picture large enough for labels, and the factor, at least 1, by which it was enlarged."""
    height, width = picture.shape[:2]
    factor = max(1.0, DRAWN_SIZE / max(height, width))
    if factor == 1.0:
        return picture, factor
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC)), factor


def draw_boxes(
    picture: np.ndarray,
    boxes: np.ndarray,
    labels: Sequence[str],
    colors: Sequence[np.ndarray],
    line_styles: Sequence[str] | None = None,
) -> np.ndarray:
    """Draw boxes and their labels, the largest box first so that small ones stay visible.

    Args:
        picture: (H, W, 3) uint8 RGB.
        boxes: (N, 4) absolute xyxy.
        labels: a text for each box, "" for none. It goes to a corner of its box, off other labels if there is room.
        colors: of each box, RGB from 0 to 1; its label has the same in light.
        line_styles: matplotlib's, of each box; solid lines if None.

    Returns:
        The picture with what was drawn, (H, W, 3) uint8 RGB.
    """
    visualizer = Visualizer(picture)
    text_height = max(MIN_TEXT_HEIGHT, TEXT_HEIGHT * max(picture.shape[:2]))
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    largest_first = np.argsort(-areas, kind="stable").tolist()
    for i in largest_first:
        style = line_styles[i] if line_styles else "-"
        visualizer.draw_box(boxes[i], alpha=1.0, edge_color=tuple(colors[i]), line_style=style)
    taken: list[np.ndarray] = []
    for i in largest_first:
        if labels[i]:
            size = np.array([LETTER_WIDTH * len(labels[i]), LABEL_HEIGHT]) * text_height
            place = _free_place(boxes[i], size, picture.shape[:2], taken)
            taken.append(place)
            visualizer.draw_text(
                labels[i],
                tuple(place[:2]),
                color=tuple((1 - TEXT_WHITENESS) * np.asarray(colors[i]) + TEXT_WHITENESS),
                horizontal_alignment="left",
                font_size=text_height * POINTS_PER_PIXEL,
            )
    return visualizer.get_output().get_image()


def _free_place(box: np.ndarray, size: np.ndarray, picture: tuple[int, int], taken: list[np.ndarray]) -> np.ndarray:
    """Where a label goes, xyxy: a corner of its box, outside or inside, off other labels if there is such a place.

    Args:
        box: (4,) xyxy.
        size: (2,) width and height of the label.
        picture: height and width.
        taken: places of the labels so far.
    """
    x0, y0, x1, y1 = box
    width, height = size
    room = np.maximum((picture[1] - width, picture[0] - height), 0)
    least = np.inf
    for x, y in (
        (x0, y0 - height), (x0, y1), (x1 - width, y0 - height), (x1 - width, y1),
        (x0, y0), (x0, y1 - height), (x1 - width, y0), (x1 - width, y1 - height), (x1, y0), (x0 - width, y0),
    ):  # fmt: skip
        corner = np.clip((x, y), 0, room)
        place = np.concatenate([corner, corner + size])
        covered = sum(_overlap(place, other) for other in taken)
        if covered < least:
            least, best = covered, place
        if covered == 0:
            break
    return best


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Area that two xyxy rectangles share."""
    return float(np.prod(np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None)))


def text_strip(width: int, entries: list[tuple[str, object]]) -> np.ndarray:
    """A dark strip, (STRIP_HEIGHT, width, 3), with texts in their colors spread over it from the left."""
    visualizer = Visualizer(np.zeros((STRIP_HEIGHT, width, 3), dtype=np.uint8))
    for i, (text, color) in enumerate(entries):
        x = 6 + i * width / len(entries)
        visualizer.draw_text(text, (x, 4), color=color, horizontal_alignment="left", font_size=12)
    return visualizer.get_output().get_image()
