"""Registers the data sets that the configs name, where they lie under `DETECTRON2_DATASETS` (default `datasets`).

See datasets/README.md for their layout. COCO and Pascal VOC are registered by detectron2 itself.
"""

import os
from functools import partial
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_voc_instances, register_coco_instances

from .shapes import KINDS, SHAPES_CLASSES, annotation_file

BCCD_CLASSES = ("WBC", "RBC", "Platelets")


def register_shapes(root: Path) -> None:
    """`shapes_train`, `shapes_scales_train` and the other splits that datasets/prepare_shapes.py makes."""
    for kind, look in KINDS.items():
        for split in look.counts:
            name, folder = f"{kind}_{split}", root / kind
            register_coco_instances(name, {}, str(annotation_file(folder, split)), str(folder / split))
            MetadataCatalog.get(name).thing_classes = list(SHAPES_CLASSES)


def register_coco128(root: Path) -> None:
    """`coco128_train` and `coco128_val`: 96 and 32 photos of COCO."""
    for split in ("train", "val"):
        annotations = root / "coco128" / "annotations" / f"instances_{split}.json"
        if annotations.is_file():
            register_coco_instances(f"coco128_{split}", {}, str(annotations), str(root / "coco128" / "train2017"))


def register_bccd(root: Path) -> None:
    """`bccd_train`, `bccd_val` and `bccd_test`: blood cells in VOC format, evaluated as COCO is."""
    folder = root / "bccd"
    for split in ("train", "val", "test"):
        if (folder / "ImageSets" / "Main" / f"{split}.txt").is_file():
            name = f"bccd_{split}"
            DatasetCatalog.register(name, partial(load_voc_instances, str(folder), split, BCCD_CLASSES))
            MetadataCatalog.get(name).set(
                thing_classes=list(BCCD_CLASSES), dirname=str(folder), split=split, evaluator_type="coco"
            )


def register_crowdhuman(root: Path) -> None:
    """`crowdhuman_train` and `crowdhuman_val`: the full-body boxes of CrowdHuman as COCO JSON."""
    folder = root / "crowdhuman"
    for split in ("train", "val"):
        annotations = folder / "annotations" / f"{split}.json"
        if annotations.is_file():
            register_coco_instances(f"crowdhuman_{split}", {}, str(annotations), str(folder / f"CrowdHuman_{split}"))


_ROOT = Path(os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets")))
for _register in (register_shapes, register_coco128, register_bccd, register_crowdhuman):
    _register(_ROOT)
