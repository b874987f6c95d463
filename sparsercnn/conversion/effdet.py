"""EfficientDet's weights from the `effdet` package, https://github.com/rwightman/efficientdet-pytorch.

Its `tf_efficientdet_*` models hold the weights of the paper's authors.
"""

import re
from collections.abc import Callable, Mapping

from detectron2.data import MetadataCatalog
from torch import Tensor

from ..errors import InputError

# Deltas are (dy, dx, dh, dw) there and (dx, dy, dw, dh) here.
DELTA_ORDER = [1, 0, 3, 2]
# The authors number COCO's 80 classes by the categories' ids, which go up to this.
LARGEST_COCO_ID = 90

CLASS_LAYER = "head.class_logits.pointwise"
DELTA_LAYER = "head.box_deltas.pointwise"


def from_effdet(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give effdet's tensors the names that they have in `EfficientDet` with timm's network and a BiFPN.

    Biases before a batch norm, which effdet has as TensorFlow's models did, become part of its running mean.

    Args:
        theirs: state dict of an effdet model with TensorFlow's padding, `tf_efficientdet_*`.
        ours: state dict of the model to fill; only its number of classes is read. 80 classes are filled from 90, the
            ids of COCO's categories.

    Returns:
        A state dict for our model.

    Raises:
        InputError: `theirs` is of another family of models, or has other classes.
    """
    levels = [int(found[1]) for name in theirs if (found := re.match(r"box_net\.bn_rep\.0\.(\d+)\.", name))]
    if not levels or "box_net.conv_rep.0.conv_pw.bias" not in theirs:
        raise InputError(
            "these are no weights of an effdet model with TensorFlow's padding (tf_efficientdet_d0 and the like); "
            "those of its other models do not fit, because EfficientDet here pads as TensorFlow does"
        )
    state: dict[str, Tensor] = {}
    biases: dict[str, Tensor] = {}
    for name, tensor in theirs.items():
        new = _rename(name, steps=max(levels))
        (biases if new.endswith(".bias_before_norm") else state)[new] = tensor.clone()
    for name, bias in biases.items():
        norm = name.removesuffix(".bias_before_norm")
        for mean in [key for key in state if re.fullmatch(rf"{norm}\.running_mean", key)]:
            state[mean] -= bias
    _order_deltas(state)
    _choose_classes(state, ours)
    return state


def _rename(name: str, steps: int) -> str:
    """Our name of a tensor.

    A bias before a norm is called NORM.bias_before_norm, where NORM is the norm's name, or a pattern for the norms of
    several levels, which share the convolution.

    Args:
        name: effdet's.
        steps: levels of the pyramid less one.
    """
    if name.startswith("backbone."):
        return name.replace("backbone.", "backbone.bottom_up.network.", 1)
    name = name.replace(".conv_dw.", ".depthwise.").replace(".conv_pw.", ".pointwise.")
    for pattern, replace in _RULES:
        if found := re.fullmatch(pattern, name):
            return replace(steps, *found.groups())
    return name


def _in_edge(edge: str, rest: str) -> str:
    """A 1×1 convolution with norm, in which effdet calls the two "conv" and "bn"."""
    if rest == "conv.bias":
        return f"{edge}.norm.bias_before_norm"
    return f"{edge}.{rest.removeprefix('conv.').replace('bn.', 'norm.')}"


def _node(steps: int, layer: str, index: str) -> str:
    """A node of a BiFPN layer: effdet numbers them in the order in which they run, down first and then up."""
    i = int(index)
    place = f"top_down.{steps - 1 - i}" if i < steps else f"bottom_up.{i - steps}"
    return f"backbone.neck.layers.{layer}.{place}"


def _lateral(steps: int, layer: str, index: str, level: str, rest: str) -> str:
    is_down = int(index) < steps
    place = f"lateral_down.{level}" if is_down else f"lateral_up.{int(level) - 1}"
    return _in_edge(f"backbone.neck.layers.{layer}.{place}", rest)


def _in_node(steps: int, layer: str, index: str, rest: str) -> str:
    node = _node(steps, layer, index)
    if rest == "pointwise.bias":
        return f"{node}.pointwise.norm.bias_before_norm"
    return f"{node}.{rest.replace('bn.', 'pointwise.norm.')}"


def _in_tower(steps: int, net: str, index: str, rest: str) -> str:
    if rest == "pointwise.bias":
        return rf"head\.{net}_tower\.norms\.\d+\.{index}.bias_before_norm"
    return f"head.{net}_tower.convs.{index}.{rest}"


_RULES: list[tuple[str, Callable[..., str]]] = [
    (r"fpn\.resample\.\d+\.conv\.(.+)", lambda _, rest: _in_edge("backbone.neck.lateral_extra.0", rest)),
    (r"fpn\.cell\.(\d+)\.fnode\.(\d+)\.combine\.edge_weights", lambda *node: f"{_node(*node)}.weight"),
    (r"fpn\.cell\.(\d+)\.fnode\.(\d+)\.combine\.resample\.(\d+)\.conv\.(.+)", _lateral),
    (r"fpn\.cell\.(\d+)\.fnode\.(\d+)\.after_combine\.conv\.(.+)", _in_node),
    (r"(class|box)_net\.conv_rep\.(\d+)\.(.+)", _in_tower),
    (r"(class|box)_net\.bn_rep\.(\d+)\.(\d+)\.bn\.(.+)", lambda _, n, i, k, x: f"head.{n}_tower.norms.{k}.{i}.{x}"),
    (r"class_net\.predict\.(.+)", lambda _, rest: f"head.class_logits.{rest}"),
    (r"box_net\.predict\.(.+)", lambda _, rest: f"head.box_deltas.{rest}"),
]


def _order_deltas(state: dict[str, Tensor]) -> None:
    for name in (f"{DELTA_LAYER}.weight", f"{DELTA_LAYER}.bias"):
        state[name] = state[name].unflatten(0, (-1, 4))[:, DELTA_ORDER].flatten(0, 1)


def _choose_classes(state: dict[str, Tensor], ours: Mapping[str, Tensor]) -> None:
    """Keep the classes that the model has, in its order."""
    num_anchors = len(state[f"{DELTA_LAYER}.bias"]) // 4
    given, wanted = (len(x[f"{CLASS_LAYER}.bias"]) // num_anchors for x in (state, ours))
    if given == wanted:
        return
    ids = MetadataCatalog.get("coco_2017_val").thing_dataset_id_to_contiguous_id
    if (given, wanted) != (LARGEST_COCO_ID, len(ids)):
        raise InputError(f"these are weights for {given} classes, but the model of the config has {wanted}")
    rows = [category - 1 for category in sorted(ids, key=ids.__getitem__)]
    for name in (f"{CLASS_LAYER}.weight", f"{CLASS_LAYER}.bias"):
        state[name] = state[name].unflatten(0, (-1, given))[:, rows].flatten(0, 1)
