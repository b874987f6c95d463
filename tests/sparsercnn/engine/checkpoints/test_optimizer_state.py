"""Training states of the published code, which has an optimizer group for each parameter, continue in ours."""

import copy
import itertools

import pytest
import torch
from torch import nn

from sparsercnn import load_config
from sparsercnn.engine import build_lr_scheduler, build_optimizer
from sparsercnn.engine.checkpoints.optimizer_state import checked_training_state, fit_groups, from_old_layout
from sparsercnn.errors import InputError

RATES = {"backbone": 0.05, "head": 0.1}


def make_model():
    torch.manual_seed(0)
    layers = {"head": nn.Linear(4, 4), "backbone": nn.Conv2d(3, 4, 3), "head_2": nn.Linear(4, 4)}
    model = nn.ModuleDict(layers)
    model["backbone"].bias.requires_grad_(False)
    return model


@pytest.fixture
def cfg():
    options = ["SOLVER.BASE_LR", 0.1, "SOLVER.BACKBONE_MULTIPLIER", 0.5, "SOLVER.WEIGHT_DECAY", 0.01]
    return load_config(options=options)


@pytest.fixture(params=["ADAMW", "SGD"])
def published(request, cfg):
    """A model, its optimizer with a group for each parameter after two steps, and the names of these parameters."""
    cfg.SOLVER.OPTIMIZER = request.param
    model = make_model()
    # The published model has its modules in another order than ours.
    names = [name for name, p in sorted(model.named_parameters()) if p.requires_grad]
    parameters = dict(model.named_parameters())
    groups = [
        {"params": [parameters[n]], "lr": RATES["backbone" if "backbone" in n else "head"], "weight_decay": 0.01}
        for n in names
    ]
    kwargs = {"momentum": 0.9} if request.param == "SGD" else {}
    optimizer = {"ADAMW": torch.optim.AdamW, "SGD": torch.optim.SGD}[request.param](groups, 0.1, **kwargs)
    torch.manual_seed(1)
    for _ in range(2):
        step(model, optimizer)
    return model, optimizer, names


def step(*models_and_optimizers):
    """The same gradients to each model, whose optimizer then steps."""
    models, optimizers = models_and_optimizers[::2], models_and_optimizers[1::2]
    for parameters in zip(*(model.parameters() for model in models), strict=True):
        gradient = torch.randn_like(parameters[0])
        for p in parameters:
            p.grad = gradient.clone()
    for optimizer in optimizers:
        optimizer.step()


def trainer_state(optimizer):
    rates = [group["lr"] for group in optimizer.param_groups]
    scheduler = {"base_lrs": rates, "last_epoch": 2}
    state = {"iteration": 1, "hooks": {"LRScheduler": scheduler}, "_trainer": {"optimizer": optimizer.state_dict()}}
    return copy.deepcopy(state)  # as from a file


def ours(cfg, model, names):
    optimizer = build_optimizer(cfg, model)
    parameters = dict(model.named_parameters())
    return optimizer, [parameters[name] for name in names]


def test_moments_go_to_their_parameters_and_training_continues_the_same(cfg, published):
    model, theirs, names = published
    resumed = copy.deepcopy(model)
    optimizer, parameters = ours(cfg, resumed, names)
    assert len(optimizer.param_groups) == 2
    build_lr_scheduler(cfg, optimizer)
    state = fit_groups(trainer_state(theirs), parameters, optimizer)
    optimizer.load_state_dict(state["_trainer"]["optimizer"])
    for (name, p), q in zip(resumed.named_parameters(), model.parameters(), strict=True):
        assert optimizer.state[p].keys() == theirs.state[q].keys(), name
        torch.testing.assert_close(optimizer.state[p], theirs.state[q], rtol=0, atol=0)
    for _ in range(2):
        step(model, theirs, resumed, optimizer)
    torch.testing.assert_close(resumed.state_dict(), model.state_dict())


def test_learning_rates_are_the_schedules_of_the_groups(cfg, published):
    model, theirs, names = published
    optimizer, parameters = ours(cfg, model, names)
    state = fit_groups(trainer_state(theirs), parameters, optimizer)
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates == state["hooks"]["LRScheduler"]["base_lrs"] == [0.1, 0.05]
    assert state["hooks"]["LRScheduler"]["last_epoch"] == 2 and state["iteration"] == 1
    assert [group["lr"] for group in state["_trainer"]["optimizer"]["param_groups"]] == rates


def test_how_the_optimizer_computes_stays_our_choice(cfg, published):
    model, theirs, names = published
    optimizer, parameters = ours(cfg, model, names)
    before = {(group["fused"], group["foreach"]) for group in optimizer.param_groups}
    optimizer.load_state_dict(fit_groups(trainer_state(theirs), parameters, optimizer)["_trainer"]["optimizer"])
    assert {(group["fused"], group["foreach"]) for group in optimizer.param_groups} == before != {(None, None)}


def test_a_state_of_ours_is_left_alone(cfg):
    model = make_model()
    optimizer = build_optimizer(cfg, model)
    state = trainer_state(optimizer)
    assert fit_groups(state, [], optimizer) is state


def refusal(*args):
    with pytest.raises(InputError, match="cannot be resumed") as raised:
        fit_groups(*args)
    assert "\n" not in str(raised.value) and "MODEL.WEIGHTS" in str(raised.value)
    return str(raised.value)


def test_other_parameters_are_refused(cfg, published):
    model, theirs, names = published
    model["backbone"].requires_grad_(False)
    optimizer, parameters = ours(cfg, model, [name for name in names if "backbone" not in name])
    assert "5 groups of 5 parameters" in refusal(trainer_state(theirs), parameters, optimizer)


def test_parameters_in_an_order_that_does_not_fit_are_refused(cfg, published):
    model, theirs, names = published
    weight, bias = names.index("head.weight"), names.index("head.bias")
    names[weight], names[bias] = names[bias], names[weight]
    optimizer, parameters = ours(cfg, model, names)
    assert "of shape" in refusal(trainer_state(theirs), parameters, optimizer)


def test_another_optimizer_is_refused(cfg, published):
    model, theirs, names = published
    cfg.SOLVER.OPTIMIZER = {"ADAMW": "SGD", "SGD": "ADAMW"}[cfg.SOLVER.OPTIMIZER]
    optimizer, parameters = ours(cfg, model, names)
    assert "another optimizer" in refusal(trainer_state(theirs), parameters, optimizer)


@pytest.mark.parametrize("option", ["lr", "weight_decay"])
def test_parameters_that_were_trained_differently_do_not_share_a_group(cfg, published, option):
    model, theirs, names = published
    theirs.param_groups[-1][option] = 0.7
    optimizer, parameters = ours(cfg, model, names)
    message = refusal(trainer_state(theirs), parameters, optimizer)
    assert option in message and "0.7" in message


def test_the_layout_of_old_checkpoints(published):
    _, theirs, _ = published
    scheduler = {"base_lrs": [0.1] * 5, "last_epoch": 2, "milestones": [3], "gamma": 0.1}
    old = {"model": {}, "optimizer": theirs.state_dict(), "scheduler": scheduler, "iteration": 1}
    new = from_old_layout(old)
    assert new.keys() == {"model", "trainer", "iteration"}
    state = checked_training_state(new["trainer"])
    assert state["hooks"]["LRScheduler"] == {"base_lrs": [0.1] * 5, "last_epoch": 2}
    assert new["trainer"]["_trainer"]["optimizer"] is old["optimizer"]
    for keys in itertools.combinations(("optimizer", "scheduler", "iteration"), 2):
        part = {key: old[key] for key in keys}
        assert from_old_layout(part) is part


def changed(state, path, value):
    """A copy of a nested dict or list with one value changed, or removed if it is `...`."""
    if not path:
        return value
    copied = copy.copy(state)
    if len(path) == 1 and value is ...:
        del copied[path[0]]
    else:
        copied[path[0]] = changed(state[path[0]], path[1:], value)
    return copied


OPTIMIZER = ("_trainer", "optimizer")
SCHEDULER = ("hooks", "LRScheduler")


@pytest.mark.parametrize(
    ("path", "values"),
    [
        ((), [None, [], "state", {}]),
        (("iteration",), [..., None, -1, 1.5, "1", True, 10**12, torch.tensor(1)]),
        (("_trainer",), [..., None, [], {}]),
        (OPTIMIZER, [None, [], {}, {"state": {}}]),
        ((*OPTIMIZER, "state"), [..., None, [1]]),
        ((*OPTIMIZER, "state", 0), [None, 1.5]),
        ((*OPTIMIZER, "param_groups"), [..., None, {}, [1]]),
        ((*OPTIMIZER, "param_groups", 0, "params"), [..., None, 3]),
        (("hooks",), [None, [1], {"LRScheduler": 1}]),
        ((*SCHEDULER, "base_lrs"), [..., None, 0.1, [], ["0.1"] * 5, [float("nan")] * 5, [-0.1] * 5, [0.1] * 6]),
        ((*SCHEDULER, "last_epoch"), [..., None, -1, 0.5, 10**12]),
    ],
)
def test_a_state_of_other_types_is_refused(published, path, values):
    state = trainer_state(published[1])
    checked_training_state(state)
    for value in values:
        with pytest.raises(ValueError) as raised:
            checked_training_state(changed(state, path, value))
        assert "\n" not in str(raised.value)


def own_state(cfg):
    """An optimizer of ours and its state after a step."""
    model = make_model()
    optimizer = build_optimizer(cfg, model)
    step(model, optimizer)
    return optimizer, trainer_state(optimizer)


@pytest.mark.parametrize("option", ["lr", "weight_decay", "eps", "betas"])
@pytest.mark.parametrize("value", [..., None, "0.1", float("nan"), -1.0, torch.zeros(3), [None, 0.9]])
def test_options_that_are_no_numbers_are_refused(cfg, option, value):
    optimizer, state = own_state(cfg)
    refusal(changed(state, (*OPTIMIZER, "param_groups", 0, option), value), [], optimizer)


@pytest.mark.parametrize("name", ["exp_avg", "exp_avg_sq", "step"])
@pytest.mark.parametrize("value", [..., None, "0.1", torch.zeros(7), torch.zeros(4, 4, dtype=torch.int64), [1.0]])
def test_moments_of_other_shapes_are_refused(cfg, name, value):
    optimizer, state = own_state(cfg)
    fit_groups(state, [], optimizer)
    refusal(changed(state, (*OPTIMIZER, "state", 0, name), value), [], optimizer)


def test_another_optimizer_of_our_own_is_refused(cfg):
    _, state = own_state(cfg)
    cfg.SOLVER.OPTIMIZER = "SGD"
    optimizer, _ = own_state(cfg)
    assert "another optimizer" in refusal(state, [], optimizer)
