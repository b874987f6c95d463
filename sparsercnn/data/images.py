"""Reading images: one way for training, evaluation and drawing, with detectron2's conventions and a clear error.

What a file shows is read as detectron2 reads it: upright as EXIF says, alpha dropped, gray and palette spread to three
channels, of an animation or a multi-page file the first picture. Beyond that, 16-bit images are scaled instead of
clipped to white, and a file that cannot be read right is refused by name.
"""

import os
import warnings
from collections.abc import Callable
from typing import BinaryIO

import numpy as np
from detectron2.data import detection_utils as utils
from detectron2.utils.file_io import PathManager
from PIL import ExifTags, Image

from ..config import MAX_PIXELS
from ..errors import InputError, one_line

# What photos and drawings come in. Pillow's other formats are rare or run programs (PostScript), and one more decoder
# is one more way in for a hostile file.
FORMATS = ("JPEG", "PNG", "BMP", "DIB", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF")
# Pillow refuses larger images itself.
LARGEST_MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 0)
# Thinner images would vanish, or fill the memory, when their shorter or longer side is resized to a given size.
MAX_ASPECT_RATIO = 64
# Beginnings of files that get the name of a picture by mistake, often a server's answer instead of the picture.
OTHER_FILES = {
    b"%pdf": "a PDF document",
    b"%!ps": "a PostScript document",
    b"<svg": "an SVG drawing",
    b"<html": "an HTML page",
    b"<!doctype html": "an HTML page",
}
TIFF_BITS_PER_SAMPLE, TIFF_PHOTOMETRIC, TIFF_SAMPLE_FORMAT = 258, 262, 339


def silence_pillow() -> None:
    """Ignore what Pillow warns of: oddities that it can live with. What it cannot live with is an error here anyway."""
    warnings.filterwarnings("ignore", module=r"PIL\.")


silence_pillow()
Image.init()
_INSTALLED_FORMATS = [name for name in FORMATS if name in Image.OPEN]


def read_image(path: str, image_format: str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read an image upright: (H, W, C) uint8, C = 3 but for gray formats.

    Args:
        path: a file in one of `FORMATS`, whatever its suffix. 16-bit images keep their upper 8 bits.
        image_format: channel order, "RGB" or "BGR" or another that detectron2's `read_image` takes.
        max_pixels: an image of more is refused before it is decoded.

    Raises:
        InputError: the file is missing, damaged, no image, too large, more than `MAX_ASPECT_RATIO` times as long as it
            is wide, or has pixels of unknown range (floating-point, 32-bit or signed integers).
    """
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise ValueError("it is no regular file")  # opening a named pipe would wait forever
        with PathManager.open(path, "rb") as file:
            image = _open(file, max_pixels)
            image.load()
            to_eight_bits = _sample_scaling(image)
            image = utils._apply_exif_orientation(image)
        if to_eight_bits:
            image = Image.fromarray(to_eight_bits(np.asarray(image)).astype(np.uint8))
        return utils.convert_PIL_to_numpy(image, image_format)
    except Exception as error:  # on damaged files Pillow raises errors of two dozen classes
        reason = one_line(str(error)) or type(error).__name__
        raise InputError(f"cannot read image {one_line(str(path))}: {reason}") from error


def image_size(path: str) -> tuple[int, int]:
    """Width and height of an image, upright, from its file without decoding it.

    Raises:
        InputError: the file is missing, damaged, or no image.
    """
    try:
        with PathManager.open(path, "rb") as file, Image.open(file, formats=_INSTALLED_FORMATS) as image:
            width, height = image.size
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5  # of a PNG file, reads all of it
    except Exception as error:  # as in `read_image`
        reason = one_line(str(error)) or type(error).__name__
        raise InputError(f"cannot read image {one_line(str(path))}: {reason}") from error
    return (height, width) if turned else (width, height)


def _open(file: BinaryIO, max_pixels: int) -> Image.Image:
    """The image in `file`, not yet decoded, when its kind and size can be read here."""
    try:
        image = Image.open(file, formats=_INSTALLED_FORMATS)
        if image.format == "PNG":
            image.verify()  # the checksums, which decoding alone does not compare; then the file has to be opened anew
            file.seek(0)
            image = Image.open(file, formats=_INSTALLED_FORMATS)
    except Image.UnidentifiedImageError as error:
        raise ValueError(_what_else(file)) from error
    width, height = image.size
    if width * height > max_pixels:
        raise ValueError(f"it has {width}×{height} pixels, more than INPUT.MAX_PIXELS, which is {max_pixels}")
    if max(image.size) > MAX_ASPECT_RATIO * min(image.size):
        raise ValueError(f"it has {width}×{height} pixels; one side may be {MAX_ASPECT_RATIO} times the other at most")
    return image


def _what_else(file: BinaryIO) -> str:
    file.seek(0)
    head = file.read(1024).strip().lower()
    if not head:
        return "it is empty"
    for beginning, kind in OTHER_FILES.items():
        if head.startswith(beginning) or (head.startswith(b"<?xml") and beginning in head):
            return f"it is {kind}"
    return f"it is damaged, or no image in one of the formats {', '.join(_INSTALLED_FORMATS)}"


def _sample_scaling(image: Image.Image) -> Callable[[np.ndarray], np.ndarray] | None:
    """What brings the samples to 0 to 255; None where Pillow has done so.

    Raises:
        ValueError: the file does not say which range they have.
    """
    tags = getattr(image, "tag_v2", {})  # of TIFF files
    if set(tags.get(TIFF_SAMPLE_FORMAT, (1,))) != {1}:
        raise ValueError("its samples are signed or floating-point numbers; save it with 8 or 16 unsigned bits")
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        raise ValueError("its samples have 32 bits; save it with 8 or 16")
    if not image.mode.startswith("I"):
        return None
    (bits,) = tags.get(TIFF_BITS_PER_SAMPLE, (16,))
    white_is_zero = tags.get(TIFF_PHOTOMETRIC) == 0

    def to_eight_bits(samples: np.ndarray) -> np.ndarray:
        samples = samples >> (bits - 8)
        return 255 - samples if white_is_zero else samples

    return to_eight_bits
