"""What the calls in a `torch.fx` graph do: which function, with which memory."""

import operator
from collections.abc import Callable, Collection
from typing import TypeVar, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from .convolution import FastConv2d

M = TypeVar("M", bound=nn.Module)

ACTIVATIONS: dict[Callable | str, str] = {
    **dict.fromkeys((F.relu, torch.relu, F.relu_, torch.relu_, "relu", "relu_"), "relu"),
    F.silu: "silu",
    F.gelu: "gelu",
    F.hardswish: "hardswish",
    F.hardsigmoid: "hardsigmoid",
    **dict.fromkeys((F.sigmoid, torch.sigmoid, torch.sigmoid_, "sigmoid", "sigmoid_"), "sigmoid"),
    **dict.fromkeys((F.tanh, torch.tanh, torch.tanh_, "tanh", "tanh_"), "tanh"),
}
"""Functions and tensor methods, and their names in `convolution.ACTIVATIONS`."""
ADDITIONS = {operator.add, operator.iadd, torch.add, "add", "add_"}
MULTIPLICATIONS = {operator.mul, operator.imul, torch.mul, "mul", "mul_"}
IN_PLACE_OPERATORS = {operator.iadd, operator.imul, operator.isub, operator.itruediv, operator.setitem}
METADATA = {"shape", "ndim", "dtype", "device", "size", "dim", "requires_grad", "is_contiguous"}
"""Attributes and methods of a tensor that do not read its values."""
ALLOCATING = {
    *ACTIVATIONS,
    *ADDITIONS,
    *MULTIPLICATIONS,
    operator.sub,
    operator.truediv,
    operator.itruediv,
    torch.cat,
    F.adaptive_avg_pool2d,
    F.adaptive_max_pool2d,
    F.avg_pool2d,
    F.batch_norm,
    F.interpolate,
    F.max_pool2d,
}
"""Functions and methods that return memory of their own, unless they write in place."""


def operand(node: fx.Node, i: int = 0) -> fx.Node:
    """Argument `i` of a call, where that is known to be a node of the graph and no number, list or the like."""
    return cast(fx.Node, node.args[i])


def reads_values(node: fx.Node) -> bool:
    """Whether a call depends on more of its tensors than their shape, type and place."""
    is_attribute = node.op == "call_function" and node.target is getattr and node.args[1] in METADATA
    return not (is_attribute or (node.op == "call_method" and node.target in METADATA))


def readers(node: fx.Node) -> list[fx.Node]:
    """The calls that read the values of what `node` gives."""
    return [user for user in node.users if reads_values(user)]


def activation_of(node: fx.Node) -> str | None:
    """The name in `convolution.ACTIVATIONS` of the function that a call applies to each element; None for others."""
    if node.op not in ("call_function", "call_method"):
        return None
    name = ACTIVATIONS.get(node.target)
    return "gelu_tanh" if name == "gelu" and node.kwargs.get("approximate") == "tanh" else name


def is_addition(node: fx.Node) -> bool:
    """Whether a call adds two tensors of the graph."""
    is_sum = node.op in ("call_function", "call_method") and node.target in ADDITIONS and not node.kwargs
    return is_sum and len(set(node.args)) == 2 and all(isinstance(arg, fx.Node) for arg in node.args)


def is_shape(node: fx.Node) -> bool:
    """Whether a call reads the shape of a tensor."""
    return node.op == "call_function" and node.target is getattr and node.args[1] == "shape"


def is_item(node: fx.Node, indices: Collection) -> bool:
    """Whether a call takes one of these indices of a sequence."""
    return node.op == "call_function" and node.target is operator.getitem and node.args[1] in indices


def constant_operand(node: fx.Node) -> tuple[fx.Node, Tensor] | None:
    """The other operand and the constant of a call with two arguments, of which one is a constant tensor."""
    if len(node.args) != 2 or not all(isinstance(arg, fx.Node) for arg in node.args):
        return None
    first, second = operand(node, 0), operand(node, 1)
    for x, constant in ((first, second), (second, first)):
        if constant.op == "get_attr" and x.op != "get_attr":
            return x, constant_value(constant)
    return None


def constant_value(node: fx.Node) -> Tensor:
    """The constant tensor that a "get_attr" node of a graph reads."""
    return operator.attrgetter(cast(str, node.target))(node.graph.owning_module)


def called_module(node: fx.Node, kind: type[M]) -> M | None:
    """The module that `node` calls; None if that is not of exactly this class, or if `node` calls no module."""
    module = node.graph.owning_module.get_submodule(node.target) if node.op == "call_module" else None
    return module if type(module) is kind else None


def is_call_of(node: fx.Node, kind: type[nn.Module]) -> bool:
    """Whether `node` calls a module of exactly this class."""
    return called_module(node, kind) is not None


def overwritten(node: fx.Node) -> object | None:
    """The argument in whose memory a call writes its result; None if it takes other memory."""
    if node.op == "call_module":
        return node.args[1] if node.kwargs.get("overwrite") else None
    if node.op not in ("call_function", "call_method") or not node.args:
        return None
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    has_underscore = name.endswith("_") and not name.endswith("__")
    is_in_place = node.target in IN_PLACE_OPERATORS or has_underscore or node.kwargs.get("inplace") is True
    return node.args[0] if is_in_place else None


def owns_memory(node: fx.Node) -> bool:
    """Whether what a call gives certainly is no part of what other calls gave."""
    if node.op == "call_module":
        module = node.graph.owning_module.get_submodule(node.target)
        return isinstance(module, FastConv2d) or type(module).__module__.startswith("torch.nn.modules.")
    if (written := overwritten(node)) is not None:
        return isinstance(written, fx.Node) and owns_memory(written)
    return node.op in ("call_function", "call_method") and node.target in ALLOCATING


def has_plain_order(graph: fx.Graph) -> bool:
    """Whether the arguments of calls alone tell what they compute.

    Not so if something is written in place that may be read under another name, or later.
    """
    order = {node: i for i, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        if (written := overwritten(node)) is None:
            continue
        if not isinstance(written, fx.Node) or not (written.op == "placeholder" or owns_memory(written)):
            return False
        if any(order[user] > order[node] for user in written.users):
            return False
    return True


def erase_checks(graph: fx.Graph) -> None:
    """Erase assertions, and what is read of tensors without being used."""
    for node in reversed(list(graph.nodes)):
        is_pure_operator = getattr(node.target, "__module__", "") == "_operator" and overwritten(node) is None
        is_idle = node.op == "get_attr" or not reads_values(node) or is_pure_operator
        if node.target is torch._assert or (is_idle and not node.users):
            graph.erase_node(node)
