"""Weights of a detector made to fit one with other classes, another number of proposals, or another neck."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from detectron2.data import MetadataCatalog
from tabulate import tabulate
from torch import Tensor

from ...errors import InputError
from ...modeling.more_proposals import resize_proposals

CLASS_LAYERS = re.compile(
    r"(.*\.)?(class_logits\.(pointwise\.)?(weight|bias)|(cls_score|bbox_pred)\.(weight|bias)|class_features\.weight)"
)
BOXES, FEATURES = "init_proposal_boxes.weight", "init_proposal_features.weight"
PARTS = {
    "bottom-up network": re.compile(r"backbone\.bottom_up\."),
    "neck": re.compile(r"backbone\."),
    "class layers": CLASS_LAYERS,
    "proposals": re.compile(r"init_proposal_|dense_queries\.|denoising\."),
    "RoI routing": re.compile(r"head\.routing\."),
    "head": re.compile(""),
}
"""The parts of a detector, each tensor being of the first whose pattern its name begins with."""
MAY_DIFFER = ("neck", "class layers", "proposals", "RoI routing")
NAMES_SHOWN = 5
BACKGROUND = "(background)"


@dataclass
class Fit:
    """What became of the weights in a file.

    Attributes:
        weights: those to load, each of the model's shape.
        unused: names in the file that the model has in another shape, or not at all.
        notes: for parts of `PARTS`, what was done beside loading.
    """

    weights: dict[str, Tensor]
    unused: list[str] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)


def part_of(name: str) -> str:
    """The part of a detector, a key of `PARTS`, that a tensor of this name belongs to."""
    return next(part for part, pattern in PARTS.items() if pattern.match(name))


def fit_to_model(
    file: Mapping[str, Tensor],
    model: Mapping[str, Tensor],
    file_classes: Sequence[str] | None,
    model_classes: Sequence[str] | None,
) -> Fit:
    """Make the weights of a detector fit another one, as far as those parts go in which the two may differ.

    Classes of the same name keep their rows of the class layers, the others start afresh. Proposals become as many as
    the model has, see `resize_proposals`. An FPN is loaded into necks that contain one.

    Args:
        file: the weights to start from.
        model: state dict of the model, with the values that it starts with.
        file_classes: class names of the weights; None where they are not known. 80 unknown classes are COCO's.
        model_classes: those of the model.

    Raises:
        InputError: the learned proposals are too few for the wanted number.
    """
    fit = Fit(_with_fpn_names(file, model))
    _fit_classes(fit, model, file_classes, model_classes)
    _fit_proposals(fit, model)
    for name in list(fit.weights):
        differs = name not in model or model[name].shape != fit.weights[name].shape
        if differs and part_of(name) in MAY_DIFFER:
            del fit.weights[name]
            fit.unused.append(name)
    return fit


def table(fit: Fit, model: Mapping[str, Tensor]) -> str:
    """One row for each part of the model: its tensors, how many were loaded, and what became of the rest."""
    rows = []
    for part in PARTS:
        names = [name for name in model if part_of(name) == part]
        loaded = sum(name in fit.weights for name in names)
        unused = sum(part_of(name) == part for name in fit.unused)
        rest = [fit.notes[part]] if part in fit.notes else []
        rest += [f"{len(names) - loaded} start afresh"] if loaded < len(names) else []
        rest += [f"{unused} of the file not used"] if unused else []
        if names or unused:
            rows.append([part, len(names), loaded, "; ".join(rest)])
    return tabulate(rows, headers=["part", "tensors", "loaded", ""], tablefmt="pipe")


def _with_fpn_names(file: Mapping[str, Tensor], model: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights, an FPN's under the names that it has in the model: detectron2's, or alone or inside of a neck."""
    inside = any(name.startswith("backbone.neck.fpn.") for name in model)
    if not any(name.startswith("backbone.neck.") for name in model) or "backbone.neck.fpn.lateral.0.weight" in file:
        return dict(file)
    place = "backbone.neck.fpn" if inside else "backbone.neck"
    levels = sorted({int(found[1]) for name in file if (found := re.match(r"backbone\.fpn_lateral(\d+)\.", name))})

    def new_name(name: str) -> str:
        if found := re.match(r"backbone\.fpn_(lateral|output)(\d+)\.", name):
            return f"{place}.{found[1]}.{levels.index(int(found[2]))}.{name[found.end() :]}"
        return re.sub(r"^backbone\.neck\.(?=(lateral|output)\.)", f"{place}.", name)

    return {new_name(name): x for name, x in file.items()}


def _fit_classes(
    fit: Fit, model: Mapping[str, Tensor], file_classes: Sequence[str] | None, model_classes: Sequence[str] | None
) -> None:
    names = [name for name in fit.weights if name in model and CLASS_LAYERS.fullmatch(name)]
    if not names or not model_classes:
        return
    if not file_classes:
        coco = MetadataCatalog.get("coco_2017_val").thing_classes
        rows = {len(fit.weights[name]) for name in names}
        if not rows & {len(coco), len(coco) + 1}:
            return
        file_classes = coco
    if list(file_classes) == list(model_classes):
        return
    kept = [name for name in model_classes if name in file_classes]
    for name in names:
        merged = _merge_rows(name, fit.weights[name], model[name], list(file_classes), list(model_classes))
        if merged is not None:
            fit.weights[name] = merged
    fresh = [name for name in model_classes if name not in kept]
    texts = [f"{_some(kept)} of the file's {len(file_classes)} classes"] if kept else []
    texts += [f"{_some(fresh)} afresh"] if fresh else []
    fit.notes["class layers"] = ", ".join(texts)


def _merge_rows(
    name: str, theirs: Tensor, ours: Tensor, file_classes: list[str], model_classes: list[str]
) -> Tensor | None:
    """Our tensor with the rows of theirs for classes that both have; None if it has no rows for classes."""
    if "cls_score" in name or ("class_logits" in name and len(theirs) == len(file_classes) + 1):
        file_classes, model_classes = [*file_classes, BACKGROUND], [*model_classes, BACKGROUND]
    # Box deltas are class by class, logits anchor by anchor.
    axis = 0 if "bbox_pred" in name else 1
    shapes = [(len(classes), -1) if axis == 0 else (-1, len(classes)) for classes in (model_classes, file_classes)]
    if len(ours) % len(model_classes) or len(theirs) % len(file_classes) or theirs.shape[1:] != ours.shape[1:]:
        return None
    merged = ours.clone()
    to, origin = merged.unflatten(0, shapes[0]).movedim(axis, 0), theirs.unflatten(0, shapes[1]).movedim(axis, 0)
    if to.shape[1:] != origin.shape[1:]:
        return None
    both = [name for name in model_classes if name in file_classes]
    to[[model_classes.index(name) for name in both]] = origin[[file_classes.index(name) for name in both]].to(to)
    return merged


def _fit_proposals(fit: Fit, model: Mapping[str, Tensor]) -> None:
    if not (BOXES in fit.weights and BOXES in model and FEATURES in fit.weights):
        return
    learned, wanted = len(fit.weights[BOXES]), len(model[BOXES])
    if learned == wanted:
        return
    try:
        boxes, features = resize_proposals(fit.weights[BOXES], fit.weights[FEATURES], wanted)
    except ValueError as error:
        raise InputError(f"MODEL.SparseRCNN.NUM_PROPOSALS is {wanted}: {error}") from error
    fit.weights |= {BOXES: boxes, FEATURES: features}
    how = "the first ones" if wanted < learned else "extra ones lie between two that are near each other"
    fit.notes["proposals"] = f"{learned} → {wanted}: {how}"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return f"{', '.join(names[:NAMES_SHOWN])}{more}"
