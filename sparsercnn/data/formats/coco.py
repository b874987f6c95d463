"""COCO JSON, one file for each split or one for all."""

import json
import re
from pathlib import Path

from ...errors import InputError
from ..coco_json import check_coco_json
from ..image_files import some
from .labeled import UNSPLIT, LabeledBox, LabeledData, LabeledImage, class_name, find_files, split_of
from .pictures import Pictures

NAME = "COCO JSON"
# Enough of a file to see a key of its outermost object.
HEAD = 4096
KEYS = re.compile(r'^\s*\{\s*"(info|licenses|images|annotations|categories|type)"\s*:')


def find(folder: Path) -> list[Path]:
    """The files of this format in a folder and below it."""
    found = [path for path in find_files(folder, ".json") if recognizes(path)]
    # Beside them, COCO has files of key points and captions for the same pictures.
    return [path for path in found if path.name.startswith("instances_")] or found


def recognizes(path: Path) -> bool:
    """Whether a JSON file begins as one of this format."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            return bool(KEYS.match(file.read(HEAD)))
    except (OSError, UnicodeDecodeError):
        return False


def read(files: list[Path], root: Path, pictures: Pictures) -> LabeledData:
    """Read files of this format.

    Args:
        files: annotation files.
        root: folder that the names of splits are looked for below.
        pictures: where the pictures are.

    Raises:
        InputError: an entry is wrong (see `check_coco_json`), a picture is not there, or two files are of one split.
    """
    by_split: dict[str, Path] = {}
    data = LabeledData(NAME, {})
    for path in files:
        split = split_of(path, root)
        if split in by_split:
            kind = f"the {split} split" if split else "no split by their names"
            raise InputError(f"two files are of {kind}: {some([by_split[split], path])}; give one of them as SOURCE")
        by_split[split] = path
    if len(by_split) > 1 and (whole := by_split.pop(UNSPLIT, None)):
        data.remarks[f"{whole.name} left out, which is beside files of splits and names none"] += 1
    for split, path in by_split.items():
        data.splits[split] = _read_file(path, pictures, data)
    return data


def _read_file(path: Path, pictures: Pictures, data: LabeledData) -> list[LabeledImage]:
    check_coco_json(str(path))
    content = json.loads(path.read_text(encoding="utf-8"))
    names = {
        entry["id"]: class_name(entry["name"], f"{path}: category {entry['id']}") for entry in content["categories"]
    }
    data.classes |= set(names.values())
    images = {}
    for entry in content["images"]:
        file = pictures.named(entry["file_name"], f"{path}: image {entry['id']!r}", path.parent)
        images[entry["id"]] = LabeledImage(file, (entry["width"], entry["height"]))
    for entry in content["annotations"]:
        x, y, width, height = map(float, entry["bbox"])
        box = LabeledBox(names[entry["category_id"]], (x, y, width, height), bool(entry.get("iscrowd")))
        images[entry["image_id"]].boxes.append(box)
    return list(images.values())
