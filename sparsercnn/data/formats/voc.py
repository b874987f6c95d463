"""Pascal VOC: an XML file for each picture, in VOC's folders or beside the pictures."""

from pathlib import Path
from xml.etree import ElementTree

from ...errors import InputError
from ..image_files import some
from ..voc_xml import SIDES, parse_xml
from .labeled import (
    SPLITS,
    TRAIN,
    LabeledBox,
    LabeledData,
    LabeledImage,
    class_name,
    corners_to_box,
    find_files,
    number,
    read_text,
    split_of,
    whole,
)
from .pictures import Pictures

NAME = "Pascal VOC"
# Beside "train" and "val", VOC lists both of them together; used where only that list is there.
BOTH = "trainval"


def find(folder: Path) -> list[Path]:
    """The files of this format in a folder and below it."""
    return [path for path in find_files(folder, ".xml") if recognizes(path)]


def recognizes(path: Path) -> bool:
    """Whether an XML file begins as one of this format."""
    try:
        return next(ElementTree.iterparse(path, ["start"]))[1].tag == "annotation"
    except (OSError, ElementTree.ParseError, StopIteration):
        return False


def read(files: list[Path], root: Path, pictures: Pictures) -> LabeledData:
    """Read files of this format; boxes as detectron2 reads them, pixels numbered from 1 and both ends included.

    Args:
        files: an XML file for each picture.
        root: folder that the names of splits, or `ImageSets/Main`, are looked for below.
        pictures: where the pictures are.

    Raises:
        InputError: a file is malformed, an object has no name or no proper box, or a picture is not there.
    """
    data = LabeledData(NAME, {})
    lists = _lists(root)
    by_stem = {path.stem: path for path in files}
    listed: set[str] = set()
    for split, path in lists.items():
        stems = [line.split()[0] for line in read_text(path).splitlines() if line.strip()]
        if missing := [stem for stem in stems if stem not in by_stem]:
            raise InputError(f"{path}: {len(missing)} of {len(stems)} annotation files are missing: {some(missing)}")
        listed |= set(stems)
        data.splits[split] = [_read_file(by_stem[stem], pictures) for stem in stems]
    if not lists:
        for path in files:
            data.splits.setdefault(split_of(path, root), []).append(_read_file(path, pictures))
    elif len(listed) < len(by_stem):
        data.remarks["annotation file(s) left out, which no list in ImageSets/Main names"] = len(by_stem) - len(listed)
    return data


def _lists(root: Path) -> dict[str, Path]:
    folder = next((path for path in sorted(root.rglob("ImageSets/Main")) if path.is_dir()), None)
    if folder is None:
        return {}
    lists = {split: folder / f"{split}.txt" for split in SPLITS if (folder / f"{split}.txt").is_file()}
    if TRAIN not in lists and (folder / f"{BOTH}.txt").is_file():
        lists[TRAIN] = folder / f"{BOTH}.txt"
    return lists


def _read_file(path: Path, pictures: Pictures) -> LabeledImage:
    root = parse_xml(str(path))
    where = str(path)
    picture = pictures.of_stem(path, where, root.findtext("filename") or "")
    size = [whole(root.findtext(f"size/{side}") or 0, f"{where}: <{side}>") for side in ("width", "height")]
    boxes = []
    for i, entry in enumerate(root.findall("object")):
        at = f"{where}: object number {i} from 0"
        corners = [number(entry.findtext(f"bndbox/{side}"), f"{at}, <{side}>") for side in SIDES]
        box = corners_to_box((corners[0] - 1, corners[1] - 1, *corners[2:]), at)
        boxes.append(LabeledBox(class_name(entry.findtext("name"), at), box))
    return LabeledImage(picture, (size[0], size[1]), boxes)
