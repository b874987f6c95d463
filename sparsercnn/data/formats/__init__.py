"""Annotations as people have them, read into `LabeledData`: COCO JSON, Pascal VOC, YOLO, CVAT, LabelMe, CSV.

The readers are small and our own. supervision and globox read the same formats, but name no file and line when an entry
is wrong, round boxes to single precision, or drop crowds and shapes without a word; the tests hold our readers to what
globox writes.
"""

from pathlib import Path
from types import ModuleType

from ...errors import InputError
from ..image_files import some
from . import coco, cvat, labelme, table, voc, yolo
from .labeled import UNSPLIT, LabeledBox, LabeledData, LabeledImage
from .pictures import Pictures

__all__ = ["UNSPLIT", "LabeledBox", "LabeledData", "LabeledImage", "read_labeled"]

FORMATS: tuple[ModuleType, ...] = (coco, yolo, cvat, voc, labelme, table)
"""Modules with `NAME`, `find(folder)`, `recognizes(file)` and `read(files, root, pictures)`."""


def read_labeled(source: Path) -> LabeledData:
    """Read a data set in whichever format it is.

    Args:
        source: its folder, or the annotation file itself, whose pictures then lie in its folder or the one above.

    Raises:
        InputError: there is none, or of several formats, or an entry is wrong.
    """
    if not source.exists():
        raise InputError(f"there is no {source}")
    root = source if source.is_dir() else source.parent
    if source.is_file():
        found = {kind: [source] for kind in FORMATS if kind.recognizes(source)}
    else:
        found = {kind: files for kind in FORMATS if (files := kind.find(source))}
    if not found:
        if source.is_dir() and yolo.lacks_names(source):
            raise InputError(f"{source} has YOLO's labels, but no data.yaml or classes.txt that names the classes")
        kinds = ", ".join(kind.NAME for kind in FORMATS)
        raise InputError(f"{source} holds annotations in none of the formats {kinds}")
    if len(found) > 1:
        examples = "; ".join(f"{kind.NAME}: {some(files[:1])}" for kind, files in found.items())
        raise InputError(f"{source} holds annotations in several formats; give the file of one as SOURCE ({examples})")
    ((kind, files),) = found.items()
    pictures = Pictures(root)
    if not pictures.paths:
        pictures = Pictures(root.resolve().parent)
    data = kind.read(files, root, pictures)
    if not any(image.boxes for image in data.images()):
        raise InputError(f"{source}: no picture has an object ({data.format}, {len(data.images())} pictures)")
    return data
