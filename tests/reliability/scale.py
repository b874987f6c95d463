"""A training on millions of images: what its start takes, in seconds and in memory of all processes.

    python -m tests.reliability.scale --count 2000000 --seed 0

The annotations are generated; all images are one file. The first start reads the annotation file into columns, later
ones map those.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sparsercnn.data.shapes import SHAPES_CLASSES, annotation_file, prepare_shapes
from sparsercnn.files import write_whole

from .kills import arguments
from .programs import Programs

BOXES = 15
"""Of each image: 2 million images have as many boxes as Objects365."""
SIZE = 40
WORKERS = 4
ITERATIONS = 6
SECONDS_BETWEEN_SAMPLES = 0.5
SECONDS_WAITED = 1800
# Images whose annotations are written at once.
_BLOCK = 10_000


def run(count: int, seed: int, folder: Path) -> dict[str, float]:
    """Start a training with four loading processes twice.

    Args:
        count: of images.
        seed: of their boxes.
        folder: for the annotation file, 100 bytes a box, and the runs.

    Returns:
        How many "images" and "boxes" there are, the size of the annotation file ("file_gb"), and of the first start and
        of the second: the seconds from the command to the end of the first iteration ("first_start_seconds",
        "second_start_seconds"), for how many of them processors worked, one or more at a time
        ("first_start_processor_seconds", …), and the most memory until the training ended ("first_start_gib", …).
    """
    data = folder / "shapes"
    prepare_shapes(data, {"train": 1, "val": 4}, size=SIZE)
    picture = next((data / "train").iterdir()).name
    path = annotation_file(data, "train")
    write_whole(path, lambda file: file.writelines(annotations(count, picture, np.random.default_rng(seed))))
    figures: dict[str, float] = {
        "images": count,
        "boxes": count * BOXES,
        "file_gb": round(path.stat().st_size / 1e9, 2),
    }
    for name in ("first", "second"):
        figures |= {f"{name}_start_{key}": round(value, 1) for key, value in _start(folder / name, data).items()}
    return figures


def annotations(count: int, picture: str, rng: np.random.Generator) -> Iterator[bytes]:
    """The pieces of a COCO file.

    Args:
        count: of images, at least 1.
        picture: file of all of them, of `SIZE`² pixels.
        rng: draws the boxes.
    """
    image = '{"id": %d, "file_name": "' + picture + f'", "height": {SIZE}, "width": {SIZE}}}'
    box = '{"id": %d, "image_id": %d, "category_id": %d, "bbox": [%d, %d, %d, %d], "area": %d, "iscrowd": 0}'
    categories = [{"id": i, "name": name} for i, name in enumerate(SHAPES_CLASSES, 1)]
    yield f'{{"categories": {json.dumps(categories)}, "images": ['.encode()
    for start in range(1, count + 1, _BLOCK):
        ids = range(start, min(start + _BLOCK, count + 1))
        yield (", " * (start > 1) + ", ".join([image] * len(ids)) % tuple(ids)).encode()
    yield b'], "annotations": ['
    for start in range(1, count + 1, _BLOCK):
        images = np.repeat(np.arange(start, min(start + _BLOCK, count + 1)), BOXES)
        ids = np.arange(len(images)) + (start - 1) * BOXES + 1
        corners = rng.integers(0, SIZE // 2, (len(ids), 2))
        sizes = rng.integers(1, SIZE // 2, (len(ids), 2))
        classes = rng.integers(1, len(SHAPES_CLASSES) + 1, len(ids))
        rows = np.column_stack([ids, images, classes, corners, sizes, sizes.prod(1)])
        yield (", " * (start > 1) + ", ".join([box] * len(ids)) % tuple(rows.ravel().tolist())).encode()
    yield b"]}"


def _start(folder: Path, data: Path) -> dict[str, float]:
    """Start a training and wait for its end; see `run` for what is measured."""
    programs = Programs(folder)
    options = ["SOLVER.MAX_ITER", ITERATIONS, "SOLVER.CHECKPOINT_PERIOD", 1, "TEST.EVAL_PERIOD", 0]
    command = arguments(data, folder / "run", WORKERS, options=list(map(str, options)))
    began = time.monotonic()
    process = programs.start(["train_net.py", *command])
    first = folder / "run" / "model_0000000.pth"
    times: dict[str, float] = {}
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, programs.mebibytes())
        if not times and first.is_file():
            times = {"seconds": time.monotonic() - began, "processor_seconds": programs.processor_seconds()}
        if time.monotonic() > began + SECONDS_WAITED:
            programs.end()
        time.sleep(SECONDS_BETWEEN_SAMPLES)
    if process.returncode:
        raise AssertionError(f"the training ended with status {process.returncode}: {programs.printed()[-2000:]}")
    return {**times, "gib": peak / 1024}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2_000_000, help="of images")
    parser.add_argument("--seed", type=int, default=0, help="of the boxes")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        print(json.dumps(run(given.count, given.seed, Path(temporary)), indent=2))
