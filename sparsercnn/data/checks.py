"""Checks of data sets before training starts: a mistake in an annotation file should cost seconds, not a night."""

import logging
import math
import os
from collections import Counter
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from ..architectures import num_classes, num_classes_key
from ..errors import InputError, did_you_mean, one_line
from .coco_dataset import check_large, is_large
from .coco_json import check_coco_json
from .content import Content
from .image_files import NAMES_SHOWN, find_files, find_unreadable, some
from .proposal_files import check_proposal_file
from .voc_xml import check_voc

logger = logging.getLogger(__name__)


def check_datasets(cfg: CfgNode, train: bool = True) -> None:
    """Check the data sets of `DATASETS.TEST`, and of `DATASETS.TRAIN` if `train`.

    They must be registered, their annotations valid, their images on disk and readable, and their number of classes
    that of the model. What training leaves out of them is logged.

    Raises:
        InputError: the first mistake, with the file and what to do.
    """
    if train and not cfg.DATASETS.TRAIN:
        raise InputError("DATASETS.TRAIN is empty: name at least one data set to train on")
    if not train and not cfg.DATASETS.TEST:
        raise InputError("DATASETS.TEST is empty: name at least one data set to evaluate on")
    for key in ("TRAIN", "TEST"):
        if twice := [name for name, count in Counter(cfg.DATASETS[key]).items() if count > 1]:
            raise InputError(f"DATASETS.{key} names {one_line(str(twice[0]))} twice: name it once")
    train_names = tuple(cfg.DATASETS.TRAIN) if train else ()
    contents = {}
    for name in dict.fromkeys(train_names + tuple(cfg.DATASETS.TEST)):
        contents[name] = content = read_content(cfg, name, name in train_names)
        _check_images(cfg, name, content)
        _check_number_of_classes(cfg, name, content.classes)
        if name in train_names:
            _say_what_is_left_out(name, content, cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)
    _check_same_classes(contents, train_names)
    if train and not any(contents[name].tally.trained for name in train_names):
        counts = "; ".join(contents[name].tally.left_out() or "no annotations" for name in dict.fromkeys(train_names))
        raise InputError(f"DATASETS.TRAIN {', '.join(train_names)} holds no object to train on: {counts}")
    if cfg.MODEL.LOAD_PROPOSALS:
        _check_proposals(cfg, contents, train)


def _check_registered(name: str) -> None:
    names = DatasetCatalog.list()
    if name in names:
        return
    raise InputError(
        f"data set {one_line(str(name))} is not registered{did_you_mean(str(name), names)} (coco128 and bccd are "
        f"registered when found under DETECTRON2_DATASETS, {_root()}, your own by DATASETS.COCO_JSON in the config: "
        "see datasets/README.md)"
    )


def _root() -> str:
    return os.path.abspath(os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets")))


def read_content(cfg: CfgNode, name: str, trained: bool) -> Content:
    """Check the annotations of a registered data set, and return what they hold.

    Args:
        cfg: the config, of which `DATASETS.TEST` says whether the data set is evaluated.
        name: of the data set.
        trained: it is trained on, so that it must have annotations.

    Raises:
        InputError: it is not registered, or an entry is wrong.
    """
    _check_registered(name)
    metadata, evaluated = MetadataCatalog.get(name), name in cfg.DATASETS.TEST
    if _is_voc(name):
        evaluated = evaluated and metadata.get("evaluator_type") == "pascal_voc"
        return check_voc(metadata.dirname, metadata.split, metadata.thing_classes, evaluated)
    if is_large(name):
        return check_large(name, cfg.OUTPUT_DIR, evaluated)
    if metadata.get("json_file"):
        make = "; make it with: python datasets/prepare_shapes.py" if name.startswith("shapes_") else ""
        hint = f" of data set {name} (DETECTRON2_DATASETS is {_root()}; see datasets/README.md){make}"
        return check_coco_json(metadata.json_file, hint, evaluated, trained)
    return _content_of_dicts(name)


def _is_voc(name: str) -> bool:
    metadata = MetadataCatalog.get(name)
    return bool(metadata.get("dirname") and metadata.get("split"))


def _image_root(name: str) -> str | None:
    """The folder that a data set's images must lie in; None where whoever registered it named none."""
    metadata = MetadataCatalog.get(name)
    return os.path.join(metadata.dirname, "JPEGImages") if _is_voc(name) else metadata.get("image_root") or None


def _content_of_dicts(name: str) -> Content:
    """Of a data set that a user's own Python code registers."""
    try:
        dicts = DatasetCatalog.get(name)
    except (OSError, ValueError, KeyError, SyntaxError) as error:
        raise InputError(f"data set {name} cannot be loaded: {type(error).__name__}: {error}") from error
    files = [image["file_name"] for image in dicts]
    ids = [image.get("image_id", i) for i, image in enumerate(dicts)]
    sizes = [(image["width"], image["height"]) for image in dicts if "width" in image and "height" in image]
    content = Content(f"data set {name}", files, ids, sizes, MetadataCatalog.get(name).get("thing_classes", []))
    if len(sizes) < len(files):
        content.sizes = []  # detectron2 does not need them
    for i, image in enumerate(dicts):
        content.negatives += all(annotation.get("iscrowd", 0) for annotation in image.get("annotations", ()))
        for annotation in image.get("annotations", ()):
            box = BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYWH_ABS)
            size = content.sizes[i] if content.sizes else (math.inf, math.inf)
            content.tally.add(box, size, bool(annotation.get("iscrowd", 0)))
    return content


def _check_images(cfg: CfgNode, name: str, content: Content) -> None:
    """The images are in their folder and can be read, but for those that training is told to skip."""
    paths, missing = find_files(_image_root(name), content.files, content.ids, content.source)
    skips = cfg.DATALOADER.BAD_IMAGES == "skip" and name not in cfg.DATASETS.TEST
    problem = f"{content.source}: {len(missing)} of {len(paths)} images are missing: {some(missing)}"
    if missing and not (skips and len(missing) < len(paths)):
        raise InputError(problem)
    if missing:
        logger.warning(f"{problem}; they are skipped.")
        return
    problems = list(find_unreadable(paths, content.sizes, content.source, cfg.INPUT.MAX_PIXELS))
    if problems and not skips:
        raise InputError(problems[0])
    if problems:
        shown = "; ".join(problems[:NAMES_SHOWN])
        logger.warning(f"{len(problems)} images of data set {name} cannot be used and are skipped, among them: {shown}")


def _check_number_of_classes(cfg: CfgNode, name: str, classes: list[str]) -> None:
    expected = num_classes(cfg)
    if expected is not None and len(classes) != expected:
        raise InputError(
            f"data set {name} has {len(classes)} categories ({some(classes)}), but {num_classes_key(cfg)} is "
            f"{expected}; set it to {len(classes)}"
        )


def _say_what_is_left_out(name: str, content: Content, drop_negatives: bool) -> None:
    # A warning is seen before the log begins.
    if content.negatives:
        fate = "left out" if drop_negatives else "trained on as negatives"
        logger.warning(
            f"Data set {name}: {content.negatives} of {len(content.files)} images show no objects and are {fate} "
            f"(DATALOADER.FILTER_EMPTY_ANNOTATIONS {drop_negatives})."
        )
    tally = content.tally
    if left_out := tally.left_out():
        is_odd = tally.empty or tally.outside
        message = f"Data set {name}: {tally.trained} of {tally.objects} objects are trained on; left out: {left_out}."
        logger.log(logging.WARNING if is_odd else logging.INFO, message)


def _check_same_classes(contents: dict[str, Content], train_names: Sequence[str]) -> None:
    """Numbers stand for classes: in data sets that are used together, for the same ones."""
    (first, content), *others = contents.items()
    for name, other in others:
        if other.classes == content.classes:
            continue
        problem = f"data sets {first} and {name} have different classes, in the order of their ids: "
        problem += f"{some(content.classes)} and {some(other.classes)}"
        if name in train_names:
            raise InputError(f"{problem}; they cannot be trained on together")
        logger.warning(f"{problem}; what is learned as the one is measured as the other")


def _check_proposals(cfg: CfgNode, contents: dict[str, Content], train: bool) -> None:
    for split in ("TRAIN", "TEST") if train else ("TEST",):
        names, files = cfg.DATASETS[split], cfg.DATASETS[f"PROPOSAL_FILES_{split}"]
        if len(names) != len(files):
            raise InputError(
                f"DATASETS.PROPOSAL_FILES_{split} names {len(files)} files for {len(names)} data sets; "
                "MODEL.LOAD_PROPOSALS needs one for each"
            )
        for name, file in zip(names, files, strict=True):
            check_proposal_file(file, contents[name].ids)
