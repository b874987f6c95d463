"""From labeled pictures in any format to the training, validation and test sets that a config names, in COCO format."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..config import MAX_PIXELS
from ..errors import InputError
from ..files import write_json
from .duplicates import group, near_duplicates, picture_hash
from .formats import UNSPLIT, LabeledBox, LabeledData, LabeledImage
from .formats.labeled import SPLITS, TRAIN, VAL
from .image_files import READING_THREADS, some
from .images import read_image
from .split import choose_validation

# Boxes are kept to the hundredth of a pixel: what formats with relative numbers round away is less.
DIGITS = 2


@dataclass
class Prepared:
    """A data set ready to be written.

    Attributes:
        format: in which it was found.
        classes: their names, sorted, so that they do not depend on the format.
        splits: pictures by "train", "val" and, if there is one, "test", each sorted by file name.
        root: folder that all pictures lie in.
        remarks: what had to be decided or left out, a sentence each.
    """

    format: str
    classes: list[str]
    splits: dict[str, list[LabeledImage]]
    root: Path
    remarks: list[str]

    @property
    def negatives(self) -> dict[str, int]:
        """How many pictures of each split show no objects."""
        return {split: sum(not image.boxes for image in images) for split, images in self.splits.items()}


def prepare(data: LabeledData, val_fraction: float, seed: int) -> Prepared:
    """Check the pictures and boxes of a data set, and split it if it is not.

    Pictures that cannot be used are left out and named; boxes are cut off at the border of their picture.

    Args:
        data: as it was read.
        val_fraction: of the pictures, to set apart for validation if the data set has no such split.
        seed: of that split.

    Raises:
        InputError: no picture can be used, or there is nothing to train on or to validate with.
    """
    remarks = [f"{count} {what}" for what, count in data.remarks.items()]
    hashes = _inspect(data.images(), remarks)
    counts: Counter[str] = Counter()
    splits = {
        split: [_cleaned(image, counts) for image in sorted(images, key=_by_name) if _file(image) in hashes]
        for split, images in data.splits.items()
    }
    remarks += [f"{count} {what}" for what, count in counts.items()]
    splits = _split(splits, hashes, val_fraction, seed, remarks)
    classes = sorted({box.label for images in splits.values() for image in images for box in image.boxes})
    if unused := sorted(data.classes - set(classes)):
        remarks.append(f"{len(unused)} class(es) without an object left out: {some(unused)}")
    for split, images in splits.items():
        if missing := sorted(set(classes) - {box.label for image in images for box in image.boxes}):
            remarks.append(f"{split} has no example of {some(missing)}")
    files = [_file(image) for images in splits.values() for image in images]
    return Prepared(
        data.format, classes, splits, Path(os.path.commonpath([os.path.dirname(f) for f in files])), remarks
    )


def write_splits(prepared: Prepared, folder: Path) -> dict[str, Path]:
    """Write each split as a COCO file, SPLIT.json, into a folder that exists, and return the files.

    Raises:
        CannotWriteError: the file system refused.
    """
    files = {}
    for split, images in prepared.splits.items():
        files[split] = folder / f"{split}.json"
        write_json(files[split], to_coco(images, prepared.classes, prepared.root))
    return files


def to_coco(images: Sequence[LabeledImage], classes: Sequence[str], root: Path) -> dict:
    """Pictures and their objects as the content of a COCO file, whose file names are relative to `root`."""
    boxes = [(number, box) for number, image in enumerate(images, 1) for box in image.boxes]
    return {
        "images": [
            {
                "id": number,
                "file_name": Path(os.path.relpath(_file(image), root)).as_posix(),
                "width": image.size[0],
                "height": image.size[1],
            }
            for number, image in enumerate(images, 1)
        ],
        "annotations": [
            {
                "id": number,
                "image_id": image,
                "category_id": classes.index(box.label) + 1,
                "bbox": list(box.box),
                "area": round(box.box[2] * box.box[3], 2 * DIGITS),
                "iscrowd": int(box.is_crowd),
            }
            for number, (image, box) in enumerate(boxes, 1)
        ],
        "categories": [{"id": number, "name": name} for number, name in enumerate(classes, 1)],
    }


def _by_name(image: LabeledImage) -> tuple[str, str]:
    return image.path.name, str(image.path)


def _file(image: LabeledImage) -> str:
    """Where the picture is, whichever links lead there."""
    return os.path.realpath(image.path)


def _inspect(images: Sequence[LabeledImage], remarks: list[str]) -> dict[str, np.ndarray]:
    """The hash of every file that can be read and has the size that its annotation says; `remarks` name the others."""
    hashes: dict[str, np.ndarray] = {}
    problems = []

    def look(image: LabeledImage) -> np.ndarray | str:
        try:
            picture = read_image(str(image.path), "RGB", MAX_PIXELS)
        except InputError as error:
            return str(error)
        size = (picture.shape[1], picture.shape[0])
        if 0 not in image.size and size != image.size:
            sizes = [f"{width}×{height}" for width, height in (image.size, size)]
            return f"{image.path} is annotated as of {sizes[0]} pixels, but has {sizes[1]}"
        image.size = size
        return picture_hash(picture)

    with ThreadPoolExecutor(READING_THREADS) as pool:
        for image, result in zip(images, pool.map(look, images), strict=True):
            if isinstance(result, str):
                problems.append(result)
            else:
                hashes[_file(image)] = result
    if not hashes:
        raise InputError(f"none of {len(images)} pictures can be used; {problems[0]}")
    if problems:
        remarks.append(f"{len(problems)} picture(s) left out: {'; '.join(problems[:3])}")
    return hashes


def _cleaned(image: LabeledImage, counts: Counter[str]) -> LabeledImage:
    """The image with rounded boxes that lie inside of it; `counts` gets what was changed."""
    boxes = []
    for box in image.boxes:
        x, y, width, height = box.box
        corners = [round(value, DIGITS) for value in (x, y, x + width, y + height)]
        inside = [min(max(0, value), side) for value, side in zip(corners, image.size * 2, strict=True)]
        sides = [round(inside[2] - inside[0], DIGITS), round(inside[3] - inside[1], DIGITS)]
        if min(sides) <= 0:
            counts["box(es) left out, without area or outside of their picture"] += 1
            continue
        if inside != corners:
            counts["box(es) cut off at the border of their picture"] += 1
        boxes.append(LabeledBox(box.label, (inside[0], inside[1], sides[0], sides[1]), box.is_crowd))
    return LabeledImage(image.path, image.size, boxes)


def _split(
    splits: dict[str, list[LabeledImage]],
    hashes: dict[str, np.ndarray],
    val_fraction: float,
    seed: int,
    remarks: list[str],
) -> dict[str, list[LabeledImage]]:
    splits = {split: images for split, images in splits.items() if images}
    pool = splits.pop(UNSPLIT, [])
    if TRAIN not in splits:
        splits[TRAIN] = sorted(pool, key=_by_name)
    elif pool:
        remarks.append(f"{len(pool)} picture(s) of no split left out, beside those that have one")
    if not splits[TRAIN]:
        raise InputError(
            f"there are no pictures to train on, only the split(s) {', '.join(filter(splits.get, splits))}"
        )
    if VAL not in splits:
        splits |= _divide(splits[TRAIN], hashes, val_fraction, seed, remarks)
    else:
        remarks += _leaks(splits, hashes)
    return {split: splits[split] for split in SPLITS if split in splits}


def _divide(
    images: list[LabeledImage], hashes: dict[str, np.ndarray], fraction: float, seed: int, remarks: list[str]
) -> dict[str, list[LabeledImage]]:
    """Training and validation pictures of one list."""
    if len(images) < 2:
        raise InputError("there is one picture alone, which cannot both be trained on and validate the training")
    stacked = np.stack([hashes[_file(image)] for image in images])
    groups = group(len(images), near_duplicates(stacked))
    if np.bincount(groups).max() > len(images) / 2:
        # As from a camera that does not move: only true copies belong together.
        groups = group(len(images), near_duplicates(stacked, limit=0))
        remarks.append("most pictures look nearly the same, so that the split keeps only exact copies together")
    # The same picture under several names, as one exporter writes augmented copies: NAME.rf.HASH.jpg.
    sources = {name: i for i, name in enumerate(sorted({_source(image) for image in images}))}
    numbers = np.array([sources[_source(image)] for image in images])
    groups = _joined(groups, numbers)
    labels = sorted({box.label for image in images for box in image.boxes})
    counts = np.array([[sum(box.label == label for box in image.boxes) for label in labels] for image in images])
    chosen = choose_validation(groups, counts.reshape(len(images), -1), fraction, seed)
    if not chosen.any():
        raise InputError("all pictures are near-duplicates of each other; give a validation split of other pictures")
    together = len(images) - len(set(groups.tolist()))
    if together:
        remarks.append(f"{together} picture(s) are nearly the same as another one and stay on its side of the split")
    return {
        TRAIN: [image for image, is_val in zip(images, chosen, strict=True) if not is_val],
        VAL: [image for image, is_val in zip(images, chosen, strict=True) if is_val],
    }


def _source(image: LabeledImage) -> str:
    return image.path.name.partition(".rf.")[0]


def _joined(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(N,) numbers of groups that hold what is in one group by either of two numberings."""
    pairs = [np.array([[members[0], other] for other in members[1:]]) for members in _members(first, second)]
    return group(len(first), np.concatenate([np.empty((0, 2), np.int64), *(p for p in pairs if len(p))]))


def _members(*numberings: np.ndarray) -> Iterator[np.ndarray]:
    for numbers in numberings:
        order = np.argsort(numbers, kind="stable")
        yield from np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1)


def _leaks(splits: dict[str, list[LabeledImage]], hashes: dict[str, np.ndarray]) -> Iterator[str]:
    """What of the other splits is nearly the same as a picture that is trained on."""
    train = [hashes[_file(image)] for image in splits[TRAIN]]
    for split, images in splits.items():
        if split == TRAIN:
            continue
        pairs = near_duplicates(np.stack([*train, *(hashes[_file(image)] for image in images)]))
        leaking = {j for i, j in pairs.tolist() if i < len(train) <= j}
        if leaking:
            names = [images[j - len(train)].path.name for j in sorted(leaking)]
            yield f"{len(leaking)} picture(s) of {split} are nearly the same as one that is trained on: {some(names)}"
