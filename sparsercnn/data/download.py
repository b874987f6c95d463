"""Pictures at addresses on the web, which a user gives one by one."""

import tempfile
import urllib.request
from http.client import HTTPException

import numpy as np

from ..errors import InputError, one_line
from .images import read_image

TIMEOUT = 30  # seconds in which a server must answer
LARGEST = 64 * 2**20  # bytes


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
