"""Config keys of EfficientDet, and what their values may be."""

from detectron2.config import CfgNode
from detectron2.layers import get_norm

from .errors import EfficientDetConfigError

# (key, smallest value, whether it may be this value itself)
SMALLEST_VALUES = (
    ("NUM_CLASSES", 1, True),
    ("DEPTH", 0, True),
    ("TOPK_CANDIDATES", 1, True),
    ("ANCHOR_SCALE", 0, False),
    ("HUBER_DELTA", 0, False),
    ("SOFT_NMS_SIGMA", 0, False),
)


def add_efficientdet_config(cfg: CfgNode) -> None:
    """Add `MODEL.EFFICIENTDET` to `cfg`, in place. The defaults are those of the published models."""
    node = cfg.MODEL.EFFICIENTDET = CfgNode()
    # Compound coefficient 0 to 7: gives network, neck, head and input size the values of EfficientDet-D0 to D7 where
    # neither a file nor an option names them (`efficientdet.scaled_keys` lists them). `load_config` reads it. -1: none.
    node.PHI = -1
    # Classes of objects.
    node.NUM_CLASSES = 80
    # Levels of the backbone that are searched, lowest first, one for each stride.
    node.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]

    # Separable convolutions before the last one in the class net and in the box net.
    node.DEPTH = 3
    # Normalization of these, a name that detectron2.layers.get_norm knows; "" for none.
    node.NORM = "BN"
    # Side of the smallest anchor of a level, in strides of the level.
    node.ANCHOR_SCALE = 4.0

    # Of the focal loss: weight of an object's class (background has 1 - ALPHA), and exponent that plays down easy
    # examples.
    node.FOCAL_ALPHA = 0.25
    node.FOCAL_GAMMA = 1.5
    # Score that every class starts with.
    node.PRIOR_PROB = 0.01
    # Error of a box delta from which on the Huber loss is linear, and the weight of this loss.
    node.HUBER_DELTA = 0.1
    node.BOX_WEIGHT = 50.0

    # Best (anchor, class) pairs of an image that go into NMS.
    node.TOPK_CANDIDATES = 5000
    # "hard": a detection that overlaps a better one of its class by more than NMS_THRESH (IoU) is dropped. "soft": its
    # score is multiplied by exp(-IoU² / SOFT_NMS_SIGMA).
    node.NMS = "hard"
    node.NMS_THRESH = 0.5
    node.SOFT_NMS_SIGMA = 0.5


def check_config(node: CfgNode) -> None:
    """Check the values of `MODEL.EFFICIENTDET` that a model is built from.

    Raises:
        EfficientDetConfigError: the first that makes no model.
    """
    for key, smallest, included in SMALLEST_VALUES:
        if not (node[key] >= smallest if included else node[key] > smallest):
            bound = "at least" if included else "more than"
            raise EfficientDetConfigError(f"MODEL.EFFICIENTDET.{key} is {node[key]}; it must be {bound} {smallest}")
    if not 0 < node.PRIOR_PROB < 1:
        raise EfficientDetConfigError(f"MODEL.EFFICIENTDET.PRIOR_PROB is {node.PRIOR_PROB}; it must be between 0 and 1")
    if node.NMS not in ("hard", "soft"):
        raise EfficientDetConfigError(f"MODEL.EFFICIENTDET.NMS is {node.NMS!r}; it must be hard or soft")


def check_norm(norm: str, channels: int) -> None:
    """Check `MODEL.EFFICIENTDET.NORM` for levels of so many channels.

    Raises:
        EfficientDetConfigError: there is no such norm, or it does not take so many channels.
    """
    try:
        get_norm(norm, channels)
    except (KeyError, ValueError):
        raise EfficientDetConfigError(
            f"MODEL.EFFICIENTDET.NORM is {norm!r}, for levels of {channels} channels; it must be one of BN, SyncBN, "
            'FrozenBN, LN, GN (for a multiple of 32 channels) or "" for none'
        ) from None
