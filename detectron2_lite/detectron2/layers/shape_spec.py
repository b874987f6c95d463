"""What one module tells the next about its output before any tensor exists."""

from dataclasses import dataclass


@dataclass
class ShapeSpec:
    """Shape of a feature map, as far as it is known.

    Attributes:
        channels: number of channels.
        height: height in pixels.
        width: width in pixels.
        stride: input pixels per feature pixel.
    """

    channels: int | None = None
    height: int | None = None
    width: int | None = None
    stride: int | None = None
