"""Training states from files: checked, and those of the published code and its detectron2 made to fit ours.

The published optimizer has a group for each parameter, ours one for each learning rate. AdamW and SGD treat every
parameter by itself, so that the state of one is the state of the other in another order.
"""

import math
from typing import Any

import torch
from torch.nn import Parameter
from torch.optim import Optimizer

from ...errors import InputError

# How an optimizer computes, not what: this program's choice, whatever the checkpoint says.
IMPLEMENTATION = ("foreach", "fused", "capturable", "differentiable")
# Options that AdamW or SGD cannot step without, in any version of PyTorch.
OPTIONS = ("lr", "betas", "eps", "weight_decay", "momentum", "dampening", "nesterov")
# What AdamW and SGD keep of each parameter, told apart by an option.
STATES = {"betas": {"step", "exp_avg", "exp_avg_sq"}, "momentum": {"momentum_buffer"}}
# More than any training has, and what arithmetic of schedules takes without overflow.
MAX_ITERATIONS = 10**9


def from_old_layout(checkpoint: dict) -> dict:
    """A checkpoint with its training state under "trainer", where detectron2 looks for it.

    Args:
        checkpoint: as loaded. If it holds "optimizer", "scheduler" and "iteration" beside the model, as earlier
            versions of detectron2 wrote them, they move; any other is returned as it is.
    """
    if not checkpoint.keys() >= {"optimizer", "scheduler", "iteration"}:
        return checkpoint
    rest = {key: value for key, value in checkpoint.items() if key not in ("optimizer", "scheduler")}
    iteration = checkpoint["iteration"]
    rest["trainer"] = {
        "iteration": iteration,
        "hooks": {"LRScheduler": checkpoint["scheduler"]},
        "_trainer": {"iteration": iteration, "optimizer": checkpoint["optimizer"]},
    }
    return rest


def checked_training_state(state: Any) -> dict:
    """The state of detectron2's `DefaultTrainer`, whose parts are of the types that training needs.

    Args:
        state: from a file, so that it may be anything. Of the learning rate's scheduler only its position and the base
            rates are returned: the rest are settings, which the config states.

    Raises:
        ValueError: something is missing or not what it should be; the message says what.
    """
    _check(isinstance(state, dict) and isinstance(state.get("_trainer"), dict), "its state of the training is no state")
    for part in (state, state["_trainer"]):
        _check(_is_count(part.get("iteration", 0)), "its iteration is no number of iterations")
    _check("iteration" in state, "it does not say its iteration")
    optimizer = state["_trainer"].get("optimizer")
    _check(isinstance(optimizer, dict) and isinstance(optimizer.get("state"), dict), "it has no state of an optimizer")
    groups = optimizer.get("param_groups")
    _check(isinstance(groups, list) and all(isinstance(g, dict) for g in groups), "its optimizer has no groups")
    _check(all(isinstance(g.get("params"), list) for g in groups), "a group of its optimizer has no parameters")
    _check(all(isinstance(values, dict) for values in optimizer["state"].values()), "its optimizer's state is no state")
    hooks = state.get("hooks", {})
    _check(isinstance(hooks, dict) and all(isinstance(h, dict) for h in hooks.values()), "its hooks have no states")
    if "LRScheduler" not in hooks:
        return state
    rates, position = hooks["LRScheduler"].get("base_lrs"), hooks["LRScheduler"].get("last_epoch")
    _check(_are_numbers(rates) and len(rates) == len(groups), "its scheduler has no rate for each group")
    _check(_is_count(position), "its scheduler has no position")
    return {**state, "hooks": {**hooks, "LRScheduler": {"base_lrs": list(rates), "last_epoch": position}}}


def _check(condition: bool, otherwise: str) -> None:
    if not condition:
        raise ValueError(otherwise)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < MAX_ITERATIONS


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list | tuple) and all(_is_number(value) for value in values)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value < math.inf


def fit_groups(state: dict, parameters: list[Parameter], optimizer: Optimizer) -> dict:
    """The state of a trainer whose optimizer had one group per parameter, for a trainer with this optimizer.

    Args:
        state: of detectron2's `DefaultTrainer`, as `checked_training_state` returns it. One whose groups are as large
            as those of `optimizer` is returned as it is.
        parameters: the trainable parameters in the order of the model that was saved, which is that of its groups.
        optimizer: the one that is to continue.

    Raises:
        InputError: the groups fit neither way; it was another optimizer; its moments are of other shapes than the
            parameters; or parameters that share a group of `optimizer` were trained with different options.
    """
    saved = state["_trainer"]["optimizer"]
    sizes = [len(group["params"]) for group in saved["param_groups"]]
    ours = optimizer.state_dict()["param_groups"]
    if sizes == [len(group["params"]) for group in ours]:
        for theirs, group, mine in zip(saved["param_groups"], ours, optimizer.param_groups, strict=True):
            _check_options(theirs, group)
            for index, parameter in zip(theirs["params"], mine["params"], strict=True):
                _checked(saved["state"].get(index, {}), parameter, group)
        return state
    position = {parameter: i for i, parameter in enumerate(parameters)}
    wanted = [[position.get(parameter) for parameter in group["params"]] for group in optimizer.param_groups]
    if sizes != [1] * sum(map(len, wanted)) or any(None in members for members in wanted):
        raise _refusal(
            f"its optimizer has {len(sizes)} groups of {sum(sizes)} parameters, which are not those that this config "
            "trains"
        )
    merged: dict = {"state": {}, "param_groups": []}
    for group, members, mine in zip(ours, wanted, optimizer.param_groups, strict=True):
        theirs = [saved["param_groups"][i] for i in members]
        merged["param_groups"].append({**group, **_common_options(theirs, group)})
        for index, parameter, single in zip(group["params"], mine["params"], theirs, strict=True):
            (saved_index,) = single["params"]
            if saved_index in saved["state"]:
                merged["state"][index] = _checked(saved["state"][saved_index], parameter, group)
    fitted = {**state, "_trainer": {**state["_trainer"], "optimizer": merged}}
    if "LRScheduler" in state.get("hooks", {}):
        scheduler = state["hooks"]["LRScheduler"]
        rates = [scheduler["base_lrs"][members[0]] for members in wanted]
        fitted["hooks"] = {**state["hooks"], "LRScheduler": {**scheduler, "base_lrs": rates}}
    return fitted


def _common_options(groups: list[dict], ours: dict) -> dict:
    """Learning rate, weight decay and so on that all of `groups` have."""
    for group in groups:
        _check_options(group, ours)
    options = [{k: v for k, v in group.items() if k not in ("params", *IMPLEMENTATION)} for group in groups]
    for name, value in options[0].items():
        if others := [other.get(name) for other in options if other.get(name) != value]:
            raise _refusal(f"parameters that this config trains alike had {name} {value} and {others[0]}")
    return options[0]


def _check_options(saved: dict, ours: dict) -> None:
    for name in OPTIONS:
        if (name in saved) != (name in ours):
            other = "has" if name in saved else "lacks"
            raise _refusal(f"it was trained with another optimizer, which {other} the option {name}")
        if name in ours and not (_are_numbers(saved[name]) if name == "betas" else _is_number(saved[name])):
            raise _refusal(f"the option {name} of its optimizer is no number")


def _checked(state: dict, parameter: Parameter, group: dict) -> dict:
    """What an optimizer remembers of a parameter, which may be nothing yet."""
    if not state:
        return state
    for name in set().union(*(names for option, names in STATES.items() if option in group)):
        value = state.get(name)
        if name == "step":
            fits = _is_number(value.item() if torch.is_tensor(value) and value.numel() == 1 else value)
        else:
            fits = torch.is_tensor(value) and value.shape == parameter.shape and value.is_floating_point()
        # Momentum is None before the first step.
        if not fits and not (name == "momentum_buffer" and value is None):
            shape = f"of shape {tuple(value.shape)}" if torch.is_tensor(value) else f"a {type(value).__name__}"
            raise _refusal(f"a parameter of shape {tuple(parameter.shape)} has {name} {shape} in it")
    return state


def _refusal(reason: str) -> InputError:
    return InputError(f"the checkpoint cannot be resumed: {reason}; start from its weights with MODEL.WEIGHTS")
