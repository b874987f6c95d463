"""Checks of files with precomputed proposals, before detectron2 unpickles them, which could run any code."""

import pickle
from collections.abc import Iterable
from typing import Any

import numpy as np
from detectron2.utils.file_io import PathManager

from ..errors import InputError, one_line
from .image_files import some

# What NumPy arrays are pickled with, by the module names of NumPy 1 and 2.
ARRAY_GLOBALS = {("_codecs", "encode"), ("numpy", "ndarray"), ("numpy", "dtype")} | {
    (f"numpy.{core}.{module}", name)
    for core in ("core", "_core")
    for module, name in (("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer"))
}
# Detectron (Caffe2) called them by the second names.
NAMES = {"ids": "indexes", "objectness_logits": "scores"}


class _ArrayUnpickler(pickle.Unpickler):
    """Makes NumPy arrays and plain values, nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (("__builtin__", "bytes"), ("builtins", "bytes")):
            return _no_bytes
        if (module, name) not in ARRAY_GLOBALS:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, which could run any code")
        return super().find_class(module, name)


def _no_bytes() -> bytes:
    """What old pickles call for an empty array; the type itself would make gigabytes from a number."""
    return b""


def check_proposal_file(path: str, image_ids: Iterable[int | str]) -> None:
    """Check a file that `MODEL.LOAD_PROPOSALS` reads, without running code that it may carry.

    Args:
        path: a pickle of {"ids", "boxes", "objectness_logits", …}, see detectron2's `load_proposals_into_dataset`.
        image_ids: images of the data set, which must all have proposals.

    Raises:
        InputError: the file is missing or damaged, holds anything but arrays and plain values, or lacks an image.
    """
    try:
        with PathManager.open(path, "rb") as file:
            content = _ArrayUnpickler(file, encoding="latin1").load()
        ids, logits = (content.get(name, content.get(old)) for name, old in NAMES.items())
        rows = zip(content["boxes"], logits, strict=True)
        if not all(np.shape(boxes) == (len(scores), 4) for boxes, scores in rows):
            raise ValueError("boxes must be (N, 4) and scores (N,) for each image")
        missing = sorted({str(i) for i in image_ids} - {str(i) for i in ids})
        if len(ids) != len(logits):
            raise ValueError(f"it has {len(ids)} ids, but proposals of {len(logits)} images")
    except Exception as error:  # a hostile pickle raises errors of any class
        reason = one_line(str(error)) or type(error).__name__
        raise InputError(f"proposals {one_line(path)} cannot be used: {type(error).__name__}: {reason}") from error
    if missing:
        raise InputError(f"{path} has no proposals for {len(missing)} images: {some(missing)}")
