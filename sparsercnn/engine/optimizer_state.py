"""Training states of other programs: of the published code, and of the detectron2 that it was written for.

The published optimizer has a group for each parameter, ours one for each learning rate. AdamW and SGD treat every
parameter by itself, so that the state of one is the state of the other in another order.
"""

from torch.nn import Parameter
from torch.optim import Optimizer

from ..errors import InputError

# How an optimizer computes, not what: this program's choice, whatever the checkpoint says.
IMPLEMENTATION = ("foreach", "fused", "capturable", "differentiable")


def from_old_layout(checkpoint: dict) -> dict:
    """A checkpoint with its training state under "trainer", where detectron2 looks for it.

    Args:
        checkpoint: as loaded. If it holds "optimizer", "scheduler" and "iteration" beside the model, as earlier
            versions of detectron2 wrote them, they move; any other is returned as it is.
    """
    if not checkpoint.keys() >= {"optimizer", "scheduler", "iteration"}:
        return checkpoint
    rest = {key: value for key, value in checkpoint.items() if key not in ("optimizer", "scheduler")}
    iteration, scheduler = checkpoint["iteration"], checkpoint["scheduler"]
    rest["trainer"] = {
        "iteration": iteration,
        # The rest of an old scheduler's state are its settings, which the config states.
        "hooks": {"LRScheduler": {key: scheduler[key] for key in ("base_lrs", "last_epoch")}},
        "_trainer": {"iteration": iteration, "optimizer": checkpoint["optimizer"]},
    }
    return rest


def fit_groups(state: dict, parameters: list[Parameter], optimizer: Optimizer) -> dict:
    """The state of a trainer whose optimizer had one group per parameter, for a trainer with this optimizer.

    Args:
        state: of detectron2's `DefaultTrainer`. One whose groups are as large as those of `optimizer` is returned as it
            is.
        parameters: the trainable parameters in the order of the model that was saved, which is that of its groups.
        optimizer: the one that is to continue.

    Raises:
        InputError: the groups fit neither way; it was another optimizer; or parameters that share a group of
            `optimizer` were trained with different options.
    """
    saved = state["_trainer"]["optimizer"]
    sizes = [len(group["params"]) for group in saved["param_groups"]]
    ours = optimizer.state_dict()["param_groups"]
    if sizes == [len(group["params"]) for group in ours]:
        _check_same_kind(saved["param_groups"][0], ours[0])
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
                merged["state"][index] = _checked(saved["state"][saved_index], parameter)
    fitted = {**state, "_trainer": {**state["_trainer"], "optimizer": merged}}
    if "LRScheduler" in state.get("hooks", {}):
        scheduler = state["hooks"]["LRScheduler"]
        rates = [scheduler["base_lrs"][members[0]] for members in wanted]
        fitted["hooks"] = {**state["hooks"], "LRScheduler": {**scheduler, "base_lrs": rates}}
    return fitted


def _check_same_kind(saved: dict, ours: dict) -> None:
    """Other versions of an optimizer have more options or fewer; another optimizer has others."""
    if saved.keys() - ours.keys() and ours.keys() - saved.keys() - set(IMPLEMENTATION):
        raise _refusal("it was trained with another optimizer than SOLVER.OPTIMIZER")


def _common_options(groups: list[dict], ours: dict) -> dict:
    """Learning rate, weight decay and so on that all of `groups` have."""
    options = [{k: v for k, v in group.items() if k not in ("params", *IMPLEMENTATION)} for group in groups]
    for name, value in options[0].items():
        if name not in ours:
            raise _refusal(f"it was trained with another optimizer, which has the option {name}")
        if others := [other.get(name) for other in options if other.get(name) != value]:
            raise _refusal(f"parameters that this config trains alike had {name} {value} and {others[0]}")
    return options[0]


def _checked(state: dict, parameter: Parameter) -> dict:
    for name, value in state.items():
        if getattr(value, "ndim", 0) and value.shape != parameter.shape:
            raise _refusal(
                f"a parameter of shape {tuple(parameter.shape)} has {name} of shape {tuple(value.shape)} in it"
            )
    return state


def _refusal(reason: str) -> InputError:
    return InputError(f"the checkpoint cannot be resumed: {reason}; start from its weights with MODEL.WEIGHTS")
