"""Names in checkpoints of other sources, made to fit the model: Caffe2's naming, and names with another prefix."""

import logging
import re

import torch
from tabulate import tabulate

# applied in this order to a Caffe2 name whose underscores became dots
_C2_RULES = (
    (r"^pred\.", "linear."),  # the ImageNet classifier
    (r"\.b$", ".bias"),
    (r"\.w$", ".weight"),
    (r"bn\.s$", "norm.weight"),
    (r"bn\.bias$", "norm.bias"),
    (r"bn\.rm$", "norm.running_mean"),
    (r"bn\.running\.mean$", "norm.running_mean"),
    (r"bn\.riv$", "norm.running_var"),
    (r"bn\.running\.var$", "norm.running_var"),
    (r"bn\.gamma$", "norm.weight"),
    (r"bn\.beta$", "norm.bias"),
    (r"gn\.s$", "norm.weight"),
    (r"gn\.bias$", "norm.bias"),
    # the stem
    (r"^res\.conv1\.norm\.", "conv1.norm."),
    (r"^conv1\.", "stem.conv1."),
    # residual blocks
    (r"\.branch1\.", ".shortcut."),
    (r"\.branch2a\.", ".conv1."),
    (r"\.branch2b\.", ".conv2."),
    (r"\.branch2c\.", ".conv3."),
)

# the feature pyramid: "fpn.inner.res5.2.sum" is the lateral of res5, "fpn.res5.2.sum" the output convolution
_C2_FPN_RULES = (
    (r"^fpn\.inner\.res([2-5])\.\d+\.sum(?:\.lateral)?\.", r"fpn_lateral\1."),
    (r"^fpn\.res([2-5])\.\d+\.sum\.", r"fpn_output\1."),
    (r"^fpn\.6\.", "top_block.p6."),
    (r"^fpn\.7\.", "top_block.p7."),
)

# the region proposal network, on a pyramid or not, and the box head
_C2_HEAD_RULES = (
    (r"^conv\.rpn(?:\.fpn2)?\.", "proposal_generator.rpn_head.conv."),
    (r"^rpn\.bbox\.pred(?:\.fpn2)?\.", "proposal_generator.rpn_head.anchor_deltas."),
    (r"^rpn\.cls\.logits(?:\.fpn2)?\.", "proposal_generator.rpn_head.objectness_logits."),
    (r"^bbox\.pred\.", "bbox_pred."),
    (r"^cls\.score\.", "cls_score."),
    (r"^fc6\.", "box_head.fc1."),
    (r"^fc7\.", "box_head.fc2."),
    (r"^head\.conv(\d+)\.", r"box_head.conv\1."),
)


def convert_basic_c2_names(original_keys: list[str]) -> list[str]:
    """Detectron2's names for parameters of a Caffe2 ResNet, in the same order.

    "conv1_w" becomes "stem.conv1.weight", "res2_0_branch2a_bn_s" becomes "res2.0.conv1.norm.weight".
    """
    return [_apply(_C2_RULES, key.replace("_", ".")) for key in original_keys]


def _apply(rules: tuple[tuple[str, str], ...], name: str) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def convert_c2_detectron_names(
    weights: dict[str, torch.Tensor],
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Rename the weights of a Detectron (Caffe2) checkpoint, and move its background class from first to last.

    Returns:
        The weights under their new names, and the original name of each new one.
    """
    logging.getLogger(__name__).info("Renaming Caffe2 weights ......")
    original_keys = sorted(weights)
    new_keys = [_apply(_C2_FPN_RULES + _C2_HEAD_RULES, key) for key in convert_basic_c2_names(original_keys)]
    assert len(set(new_keys)) == len(original_keys), "two Caffe2 weights were given the same name"
    pairs = list(zip(new_keys, original_keys, strict=True))
    return {new: _background_last(new, weights[old]) for new, old in pairs}, dict(pairs)


def _background_last(name: str, value: torch.Tensor) -> torch.Tensor:
    """The parameter of an output layer with background's row behind those of the classes, and without a box for it."""
    if name.startswith("cls_score."):
        return torch.cat([value[1:], value[:1]])
    return value[4:] if name.startswith("bbox_pred.") else value


def align_and_update_state_dicts(
    model_state_dict: dict[str, torch.Tensor], ckpt_state_dict: dict[str, torch.Tensor], c2_conversion: bool = True
) -> dict[str, torch.Tensor]:
    """Give the tensors of a checkpoint the names of a model.

    A name of the model gets the longest name in the checkpoint that is its ending, at a dot: "backbone.res2.conv1.bias"
    gets "res2.conv1.bias" rather than "conv1.bias". A pair of different shapes is left out with a warning.

    Args:
        model_state_dict: the model's names and shapes.
        ckpt_state_dict: the checkpoint.
        c2_conversion: whether its names are Caffe2's.

    Returns:
        Matched tensors under the model's names, and the others under their own.

    Raises:
        ValueError: one tensor of the checkpoint fits two names of the model.
    """
    if c2_conversion:
        ckpt_state_dict, original_names = convert_c2_detectron_names(ckpt_state_dict)
    else:
        original_names = {name: name for name in ckpt_state_dict}
    model_of: dict[str, str] = {}  # name in the checkpoint -> name in the model
    for name in sorted(model_state_dict):
        match = _longest_suffix(name, ckpt_state_dict)
        if match is None or not _same_shape(
            name, model_state_dict[name], original_names[match], ckpt_state_dict[match]
        ):
            continue
        if match in model_of:
            logging.getLogger(__name__).error(
                f"Ambiguity found for {match} in checkpoint! "
                f"It matches at least two keys in the model ({name} and {model_of[match]})."
            )
            raise ValueError("Cannot match one checkpoint key to multiple keys in the model.")
        model_of[match] = name
    _log_matches(model_of, original_names, ckpt_state_dict)
    return {model_of.get(name, name): value for name, value in ckpt_state_dict.items()}


def _longest_suffix(name: str, candidates: dict[str, torch.Tensor]) -> str | None:
    """The longest candidate that equals `name` or its ending after a dot."""
    parts = name.split(".")
    endings = (".".join(parts[i:]) for i in range(len(parts)))
    return next((ending for ending in endings if ending in candidates), None)


def _same_shape(name: str, value: torch.Tensor, ckpt_name: str, ckpt_value: torch.Tensor) -> bool:
    if value.shape == ckpt_value.shape:
        return True
    logger = logging.getLogger(__name__)
    logger.warning(
        f"Shape of {ckpt_name} in checkpoint is {ckpt_value.shape}, while shape of {name} in model is {value.shape}."
    )
    logger.warning(f"{ckpt_name} will not be loaded. Please double check and see if this is desired.")
    return False


def _log_matches(model_of: dict[str, str], original_names: dict[str, str], ckpt: dict[str, torch.Tensor]) -> None:
    logger = logging.getLogger(__name__)
    if not model_of:
        logger.warning("No weights in checkpoint matched with model.")
        return
    rows = sorted((name, original_names[match], tuple(ckpt[match].shape)) for match, name in model_of.items())
    table = tabulate(rows, tablefmt="pipe", headers=["Names in Model", "Names in Checkpoint", "Shapes"])
    logger.info("Following weights matched with model:\n" + table)
