"""What the engine must know of a meta-architecture, in one place: it asks the model, and here answers for detectron2's.

A model class may say by class attributes: `config_defaults`, `{config key: value}` where its defaults are not
detectron2's, or a function that gives them for a config; and `num_classes_key`, the config key that holds its number of
classes.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, ProposalNetwork
from torch import nn

from .errors import InputError


def config_defaults(cfg: CfgNode) -> Mapping[str, Any]:
    """`{config key: default}` where detectron2 has other defaults than the meta-architecture that `cfg` names.

    Args:
        cfg: with all that the user says. Its meta-architecture may be unknown, which gives no defaults.
    """
    defaults = getattr(_find(cfg.MODEL.META_ARCHITECTURE), "config_defaults", {})
    return defaults(cfg) if callable(defaults) else defaults


@contextmanager
def package_errors() -> Iterator[None]:
    """Raises what packages that do not know `InputError` say about a config as `InputError`s."""
    # Late, as in `load_config`.
    from efficientdet import EfficientDetConfigError
    from necks import NeckConfigError

    try:
        yield
    except (EfficientDetConfigError, NeckConfigError) as error:
        raise InputError(str(error)) from error


def num_classes_key(cfg: CfgNode) -> str | None:
    """The config key of the number of classes of `MODEL.META_ARCHITECTURE`; None if it says none, as for an RPN."""
    model = _find(cfg.MODEL.META_ARCHITECTURE)
    if isinstance(model, type) and issubclass(model, GeneralizedRCNN):  # detectron2's, which cannot say it
        return "MODEL.ROI_HEADS.NUM_CLASSES"
    return getattr(model, "num_classes_key", None)


def num_classes(cfg: CfgNode) -> int | None:
    """The number of classes that `cfg` says, None where there is no such key; see `num_classes_key`."""
    key = num_classes_key(cfg)
    return attrgetter(key)(cfg) if key else None


def loss_normalizer(model: nn.Module, batched_inputs: list[dict]) -> int:
    """What the losses of a batch are proportional to the inverse of: its images for detectron2's models, else objects.

    Faster R-CNN samples equally many anchors and proposals of each image; a set loss counts the objects.
    """
    if isinstance(model, (GeneralizedRCNN, ProposalNetwork)):
        return len(batched_inputs)
    return sum(len(x["instances"]) for x in batched_inputs)


def _find(name: str) -> object:
    return META_ARCH_REGISTRY.get(name) if name in META_ARCH_REGISTRY else None
