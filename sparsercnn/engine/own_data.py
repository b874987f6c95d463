"""Training and evaluation on data that a user names: a registered data set, or a folder in whatever format it has."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.env import seed_all_rng

from ..architectures import num_classes_key
from ..data import register_config_datasets
from ..data.formats import UNSPLIT, LabeledImage, read_labeled
from ..data.formats.labeled import TEST, TRAIN, VAL, picture_size
from ..data.preparation import prepare, to_coco, write_splits
from ..data.training import training_dataset
from ..errors import InputError, did_you_mean
from ..files import write_json
from .checkpoints.checkpointer import SparseRCNNCheckpointer
from .checks.config_checks import check_config
from .run_folder import check_run_folder
from .temporary import temporary_folder
from .trainer import Trainer

VALIDATION_SHARE = 0.2
"""Of the pictures of a folder that has no split of its own."""


def train_on(cfg: CfgNode, data: str | Path, epochs: float | None, folder: Path) -> tuple[Path, dict[str, float]]:
    """Train a detector, and evaluate it where the data have pictures for that.

    Args:
        cfg: of the detector; training starts from its `MODEL.WEIGHTS`. It is left as it is.
        data: name of a registered data set, or a folder or annotation file that `read_labeled` reads; of a folder
            without splits a fifth is set apart for the evaluation.
        epochs: passes over the training pictures, None for the config's `SOLVER.MAX_ITER`.
        folder: for all that training leaves, and for the data in COCO format.

    Returns:
        The trained checkpoint, which holds its config and class names, and COCO metrics (AP, AP50, …), empty where
        there was nothing to evaluate on.

    Raises:
        InputError: the data cannot be used, the folder holds a run, or see `Trainer.train`.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = str(folder)
    check_run_folder(cfg, resume=False, overwrite=False)
    classes = _name_training_data(cfg, data, folder)
    if key := num_classes_key(cfg):
        cfg.merge_from_list([key, len(classes)])
    if epochs is not None:
        _set_length(cfg, epochs)
    check_config(cfg)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(cfg.dump())
    seed_all_rng(cfg.SEED if cfg.SEED >= 0 else None)
    with temporary_folder(cfg.OUTPUT_DIR):
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=False)
        trainer.train()
    results = trainer._last_eval_results if cfg.DATASETS.TEST else {}
    return folder / "model_final.pth", dict(results.get("bbox", {}))


def evaluate_on(cfg: CfgNode, class_names: Sequence[str], data: str | Path | None, folder: Path) -> dict[str, float]:
    """COCO metrics (AP, AP50, …) of a detector.

    Args:
        cfg: of the detector.
        class_names: that it tells apart.
        data: as for `train_on`; of a folder with splits the test pictures, or if there are none those for validation.
            None for the config's first test set.
        folder: for results and for the data in COCO format.

    Raises:
        InputError: the data cannot be used, or have a class that the detector does not know.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = str(folder)
    if data is None and not cfg.DATASETS.TEST:
        raise InputError("the detector's config names no test set: say what to evaluate on, data=…")
    if data is None:
        data = cfg.DATASETS.TEST[0]
    if str(data) not in DatasetCatalog.list():
        data = _write_test_data(cfg, class_names, Path(data), folder)
    cfg.DATASETS.TEST = (str(data),)
    check_config(cfg, eval_only=True)
    model = Trainer.build_model(cfg)
    SparseRCNNCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    with temporary_folder(cfg.OUTPUT_DIR):
        return dict(Trainer.test(cfg, model)["bbox"])


def _name_training_data(cfg: CfgNode, data: str | Path, folder: Path) -> list[str]:
    """Set `DATASETS` for what a user named; returns the names of its classes."""
    if str(data) in DatasetCatalog.list():
        metadata = MetadataCatalog.get(str(data))
        if not metadata.get("thing_classes"):
            DatasetCatalog.get(str(data))  # their names are in its file
        if str(data) not in cfg.DATASETS.TRAIN:
            cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (str(data),), ()
        return list(metadata.thing_classes)
    prepared = prepare(read_labeled(_existing(data)), VALIDATION_SHARE, seed=0)
    folder.mkdir(parents=True, exist_ok=True)
    files = write_splits(prepared, folder)
    names = {split: _register(cfg, folder, split, file, prepared.root) for split, file in files.items()}
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (names[TRAIN],), (names[VAL],)
    return prepared.classes


def _write_test_data(cfg: CfgNode, class_names: Sequence[str], source: Path, folder: Path) -> str:
    """Write the pictures of a folder to evaluate on in COCO format; returns the name they are registered by."""
    splits = read_labeled(_existing(source)).splits
    images = next(splits[split] for split in (TEST, VAL, UNSPLIT, TRAIN) if splits.get(split))
    unknown = sorted({box.label for image in images for box in image.boxes} - set(class_names))
    if unknown:
        raise InputError(f"{source} has objects of class {', '.join(unknown)}; the detector knows {list(class_names)}")
    images = [LabeledImage(image.path, picture_size(image.path), image.boxes) for image in images]
    root = Path(os.path.commonpath([image.path.absolute().parent for image in images]))
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "test.json", to_coco(images, class_names, root))
    return _register(cfg, folder, TEST, folder / "test.json", root)


def _existing(data: str | Path) -> Path:
    if not Path(data).exists():
        names = DatasetCatalog.list()
        raise InputError(f"data {data}: there is no such file or data set{did_you_mean(str(data), names)}")
    return Path(data)


def _register(cfg: CfgNode, folder: Path, split: str, file: Path, root: Path) -> str:
    """Register a COCO file, under a name that no other data set has, also in the config."""
    name = f"{folder.name}_{split}"
    taken, number = name, 2
    while taken in DatasetCatalog.list() and MetadataCatalog.get(taken).get("json_file") != str(file.absolute()):
        taken, number = f"{name}_{number}", number + 1
    cfg.DATASETS.COCO_JSON = [*cfg.DATASETS.COCO_JSON, [taken, str(file.absolute()), str(root)]]
    register_config_datasets(cfg)
    return taken


def _set_length(cfg: CfgNode, epochs: float) -> None:
    """Make the training of a config so many epochs long; the schedule keeps its shape."""
    if not epochs > 0:
        raise InputError(f"epochs is {epochs}; it must be above 0")
    solver, before = cfg.SOLVER, cfg.SOLVER.MAX_ITER
    batches = len(training_dataset(cfg)) / (solver.IMS_PER_BATCH * solver.ACCUMULATE)
    solver.MAX_ITER = max(1, math.ceil(epochs * batches))
    share = solver.MAX_ITER / before
    solver.STEPS = tuple(sorted({int(step * share) for step in solver.STEPS}))
    solver.WARMUP_ITERS = min(solver.MAX_ITER - 1, max(1, int(solver.WARMUP_ITERS * share)))
