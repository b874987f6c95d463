"""Reading images: detectron2's conventions, a clear error, and JPEGs decoded no larger than needed."""

import numpy as np
from detectron2.data import detection_utils as utils
from detectron2.utils.file_io import PathManager
from PIL import ExifTags, Image

from ..errors import InputError

SIDEWAYS = (5, 6, 7, 8)
"""Orientations of EXIF that exchange width and height."""


def read_image(path: str, image_format: str, min_side: int | None = None) -> tuple[np.ndarray, tuple[int, int]]:
    """Read an image upright.

    Args:
        path: of any format that Pillow reads; grey, palette, CMYK, 16-bit and transparent images are converted.
        image_format: channel order, "RGB" or "BGR" or another that detectron2's `read_image` takes.
        min_side: None, or the shorter side down to which a JPEG may be halved while it is decoded.

    Returns:
        (H, W, 3) uint8, and the (height, width) of the file, upright; the image may be smaller.

    Raises:
        InputError: the file is missing, damaged or no image.
    """
    try:
        with PathManager.open(path, "rb") as file:
            image = Image.open(file)
            full = image.size
            if min_side is not None and image.format == "JPEG":
                _decode_smaller(image, min_side)
            image.load()
            turned = _is_sideways(image)
            image = utils._apply_exif_orientation(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"cannot read image {path}: {error}") from error
    if image.mode.startswith("I"):
        # Pillow would clip 16 bits to white instead of scaling them.
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 256).astype(np.uint8))
    width, height = full[::-1] if turned else full
    return utils.convert_PIL_to_numpy(image, image_format), (height, width)


def _is_sideways(image: Image.Image) -> bool:
    try:
        return image.getexif().get(ExifTags.Base.Orientation) in SIDEWAYS
    except Exception:  # Pillow raises many types; like detectron2 we take a photo with broken EXIF data as it is
        return False


def _decode_smaller(image: Image.Image, min_side: int) -> None:
    factor = 1
    while factor < 8 and min(image.size) // (2 * factor) >= min_side:
        factor *= 2
    if factor > 1:
        # Pillow takes the smallest scale that is not below the request.
        image.draft(None, (image.size[0] // factor, image.size[1] // factor))
