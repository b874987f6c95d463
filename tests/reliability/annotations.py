"""Annotation files damaged at random: every one loads right, or is refused in a line that names the file and entry.

    python -m tests.reliability.annotations --count 10000 --seed 0

What a file means is decided by `coco_meaning` and `voc_meaning`, written apart from the checks that are tested.
"""

import argparse
import contextlib
import io
import json
import logging
import random
import re
import sys
import tempfile
import traceback
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_voc_instances, register_coco_instances
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image

from sparsercnn import load_config
from sparsercnn.data import check_datasets
from sparsercnn.errors import InputError
from sparsercnn.evaluation.coco import FastCOCOEvaluator

from .coco_files import coco_meaning, damaged_coco_file
from .voc_files import CLASSES, damaged_voc_file, voc_meaning

NAME = "reliability"
# One in so many of the files that load is evaluated, too.
EVALUATED = 10
OUTCOMES = ("loaded", "refused", "traces", "silent_wrong", "wrongly_refused", "vague")
# What a message must say about the place, beside the file: an entry, or that it is about the file as a whole.
PLACE = re.compile(
    r"(image|annotation|category|object) (number )?[-\w'\[{(.]|object with id|is not JSON|is not in COCO format|"
    r"lists no|lists image|cannot be read|holds no object to train on|are missing|cannot read image|"
    r"the annotation has|the size is|says that"
)

Meaning = dict | None
"""{image id: (width, height, [(class, xyxy box, crowd), …])} of a file that must load; None of one that must not."""


def run(count: int, seed: int, folder: Path) -> dict[str, int]:
    """Damage, check and load annotation files.

    Args:
        count: how many.
        seed: of the damage; each file follows from it and its number alone.
        folder: for the files; emptied of nothing.

    Returns:
        How many there were of "loaded" (as the independent reading says), "refused" (in one line that names file and
        entry), "traces" (another exception), "silent_wrong" (loaded as something else), "wrongly_refused" (though
        nothing is wrong) and "vague" (refused without a place). All but the first two
        kinds are explained on standard error.
    """
    make_pictures(folder)
    cfg = config()
    outcomes = Counter(dict.fromkeys(OUTCOMES, 0))
    logging.disable()  # detectron2's remarks on each data set
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # tables of results
            for number in range(count):
                rng = random.Random(f"{seed} {number}")
                make = make_voc if rng.random() < 0.25 else make_coco
                outcome, why = judge(cfg, *make(rng, folder), rng)
                outcomes[outcome] += 1
                if outcome not in OUTCOMES[:2]:
                    print(f"{outcome}: seed {seed}, number {number}: {why}", file=sys.stderr)
    finally:
        logging.disable(logging.NOTSET)
    return dict(outcomes)


def config() -> CfgNode:
    """Train and test on the data set, whatever its classes are."""
    cfg = load_config(options=["MODEL.META_ARCHITECTURE", "ProposalNetwork", "MODEL.DEVICE", "cpu"])
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (NAME,)
    return cfg


def make_pictures(folder: Path) -> None:
    """Two pictures, links to one of them and to a third outside of the image folder."""
    images = folder / "JPEGImages"
    (images / "sub").mkdir(parents=True, exist_ok=True)
    for path, size in (
        (images / "a.jpg", (40, 30)),
        (images / "sub" / "b.jpg", (30, 40)),
        (folder / "c.jpg", (40, 30)),
    ):
        Image.new("RGB", size).save(path)
    for name, target in (("link.jpg", "a.jpg"), ("out.jpg", "../c.jpg"), ("up", "..")):
        (images / name).unlink(missing_ok=True)
        (images / name).symlink_to(target)


def make_coco(rng: random.Random, folder: Path) -> tuple[str, Meaning]:
    """Write a damaged COCO file and register it; its name and what it means."""
    path = folder / "annotations.json"
    path.write_bytes(damaged_coco_file(rng))
    register_coco_instances(NAME, {}, str(path), str(folder / "JPEGImages"))
    return path.name, coco_meaning(path.read_bytes(), folder / "JPEGImages")


def make_voc(rng: random.Random, folder: Path) -> tuple[str, Meaning]:
    """Write a damaged VOC file or list and register them; a part of their names and what they mean."""
    xml, listing = damaged_voc_file(rng)
    for path, content in (("Annotations/a.xml", xml), ("ImageSets/Main/train.txt", listing)):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    DatasetCatalog.register(NAME, partial(load_voc_instances, str(folder), "train", CLASSES))
    MetadataCatalog.get(NAME).set(dirname=str(folder), split="train", thing_classes=list(CLASSES))
    return r"a\.xml|train\.txt", voc_meaning(folder)


def judge(cfg: CfgNode, file: str, meaning: Meaning, rng: random.Random) -> tuple[str, str]:
    """The outcome of checking and loading the registered data set, and why."""
    try:
        check_datasets(cfg)
        found = {r["image_id"]: (r["width"], r["height"], objects(r)) for r in DatasetCatalog.get(NAME)}
        if meaning is None or found != meaning:
            return "silent_wrong", f"{found} instead of {meaning}"
        if rng.random() < 1 / EVALUATED and is_evaluated(found):
            score = score_of_perfect_predictions(found)
            if not (score > 99.99 or np.isnan(score)):
                return "silent_wrong", f"perfect predictions score {score}"
        return "loaded", ""
    except InputError as error:
        message = str(error)
        if trains_on_something(meaning):
            return "wrongly_refused", message
        named = re.search(rf"{file}|DATASETS.TRAIN", message)
        if not (message.isprintable() and len(message) < 600 and named and PLACE.search(message)):
            return "vague", message
        return "refused", message
    except Exception:
        return "traces", traceback.format_exc()
    finally:
        DatasetCatalog.remove(NAME)
        MetadataCatalog.remove(NAME)


def objects(record: dict) -> list[tuple]:
    """(class, xyxy box, is crowd) of each annotation; not by `BoxMode.convert`, which rounds."""
    return [
        (a["category_id"], corners(*a["bbox"], a["bbox_mode"]), bool(a.get("iscrowd"))) for a in record["annotations"]
    ]


def corners(x: float, y: float, a: float, b: float, mode: BoxMode) -> tuple[float, float, float, float]:
    return (x, y, x + a, y + b) if mode == BoxMode.XYWH_ABS else (x, y, a, b)


def trains_on_something(meaning: Meaning) -> bool:
    """Whether a file must be accepted as training data: it can be read and holds an object inside of its image."""
    if meaning is None:
        return False
    return any(
        not crowd and x0 < x1 and y0 < y1 and x0 < width and y0 < height and x1 > 0 and y1 > 0
        for width, height, found in meaning.values()
        for _, (x0, y0, x1, y1), crowd in found
    )


def is_evaluated(truth: dict) -> bool:
    """Whether the COCO metrics see the annotations as they are: in COCO format, and large enough for float32."""
    large = all(x1 - x0 > 0.5 and y1 - y0 > 0.5 for *_, found in truth.values() for _, (x0, y0, x1, y1), _ in found)
    return large and MetadataCatalog.get(NAME).get("json_file") is not None


def score_of_perfect_predictions(truth: dict) -> float:
    """AP50 of predictions that are the annotations, crowds aside."""
    evaluator = FastCOCOEvaluator(NAME, distributed=False)
    evaluator.reset()
    for image_id, (width, height, found) in truth.items():
        found = [(c, box) for c, box, crowd in found if not crowd]
        predicted = Instances((height, width))
        predicted.pred_boxes = Boxes(torch.tensor([box for _, box in found], dtype=torch.float64).reshape(-1, 4))
        predicted.scores = torch.ones(len(found))
        predicted.pred_classes = torch.tensor([c for c, _ in found], dtype=torch.int64)
        evaluator.process([{"image_id": image_id}], [{"instances": predicted}])
    return evaluator.evaluate()["bbox"]["AP50"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(run(args.count, args.seed, Path(folder))))


if __name__ == "__main__":
    main()
