"""Pictures in whatever form a user has them: a file, an address on the web, an array, a tensor."""

import tempfile
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from ..errors import InputError, one_line
from .images import read_image

TIMEOUT = 30  # seconds in which a server must answer
LARGEST = 64 * 2**20  # bytes


def as_picture(image: Any) -> np.ndarray:
    """An (H, W, 3) uint8 RGB array of a path, http(s) address, array, tensor or PIL image.

    Raises:
        InputError: the file cannot be read, or it is none of these.
    """
    if isinstance(image, str) and image.startswith(("http://", "https://")):
        return download_image(image)
    if isinstance(image, (str, Path)):
        return read_image(str(image), "RGB")
    if isinstance(image, Image.Image):
        image = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    elif isinstance(image, torch.Tensor):
        image = image.permute(1, 2, 0).cpu().numpy() if image.dim() == 3 and image.shape[0] == 3 else image.numpy()
    if not isinstance(image, np.ndarray):
        raise InputError(f"a picture is a path, an array, a tensor or a PIL image, not {type(image).__name__}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InputError(f"a picture is an (H, W, 3) uint8 RGB array, not {image.shape} {image.dtype}")
    return image


def download_image(address: str) -> np.ndarray:
    """The (H, W, 3) uint8 RGB picture at an http or https address.

    Raises:
        InputError: the server does not give it, it has more than 64 MiB, or it is no picture.
    """
    with tempfile.NamedTemporaryFile() as file:
        try:
            with urllib.request.urlopen(address, timeout=TIMEOUT) as answer:
                content = answer.read(LARGEST + 1)
        except (OSError, HTTPException, ValueError) as error:
            raise InputError(f"cannot download {one_line(address)}: {one_line(str(error))}") from error
        if len(content) > LARGEST:
            raise InputError(f"cannot download {one_line(address)}: it has more than {LARGEST >> 20} MiB")
        file.write(content)
        file.flush()
        try:
            return read_image(file.name, "RGB")
        except InputError as error:
            raise InputError(str(error).replace(file.name, one_line(address))) from error
