"""Reading images: detectron2's conventions, and a clear error."""

import numpy as np
from detectron2.data import detection_utils as utils
from detectron2.utils.file_io import PathManager
from PIL import Image

from ..errors import InputError


def read_image(path: str, image_format: str) -> np.ndarray:
    """Read an image upright: (H, W, 3) uint8.

    Args:
        path: of any format that Pillow reads; gray, palette, CMYK, 16-bit and transparent images are converted.
        image_format: channel order, "RGB" or "BGR" or another that detectron2's `read_image` takes.

    Raises:
        InputError: the file is missing, damaged or no image.
    """
    try:
        with PathManager.open(path, "rb") as file:
            image: Image.Image = Image.open(file)
            image.load()
            image = utils._apply_exif_orientation(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"cannot read image {path}: {error}") from error
    if image.mode.startswith("I"):
        # Pillow would clip 16 bits to white instead of scaling them.
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 256).astype(np.uint8))
    return utils.convert_PIL_to_numpy(image, image_format)
