"""Convolutions that take over what follows them: batch norms, and on CPUs additions and activations.

Each pass changes a graph from `tracing.trace` in place. It recognizes structure alone: calls of a plain convolution,
and that nothing reads what they give but the call that is taken over.
"""

import inspect
from collections import defaultdict
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from .calls import (
    ADDITIONS,
    MULTIPLICATIONS,
    activation_of,
    called_module,
    constant_operand,
    constant_value,
    is_addition,
    is_call_of,
    is_item,
    is_shape,
    operand,
    overwritten,
    owns_memory,
    readers,
    reads_values,
)
from .convolution import FastConv2d

SPATIAL = (-2, -1, 2, 3, slice(-2, None), slice(2, None))
"""Indices of height and width, or of one of them, in the shape (B, C, H, W) of a map."""


class Affine(NamedTuple):
    """x · scale + shift, each of one number, or of one for each channel."""

    scale: Tensor
    shift: Tensor


def fold_norms(traced: fx.GraphModule) -> None:
    """Fold what scales and shifts channels behind a convolution into its weights, such as a batch norm.

    A convolution that is called more than once must be followed by the same numbers each time.
    """
    calls: dict[nn.Conv2d, list[fx.Node]] = defaultdict(list)
    for node in traced.graph.nodes:
        if conv := called_module(node, nn.Conv2d):
            calls[conv].append(node)
    for conv, nodes in calls.items():
        while _fold_next(conv, nodes):
            pass
    for node in reversed(list(traced.graph.nodes)):
        if node.op == "get_attr" and not node.users:
            traced.graph.erase_node(node)
    traced.recompile()


def _fold_next(conv: nn.Conv2d, calls: list[fx.Node]) -> bool:
    """Fold the next calls after those of `conv`; False if they cannot be."""
    following = [readers(call) for call in calls]
    if any(len(nodes) != 1 for nodes in following):
        return False
    affines = [affine for (node,) in following if (affine := _affine(node, conv.out_channels))]
    if len(affines) < len(calls):
        return False
    first, *others = affines
    if not all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True)):
        return False
    conv.weight = nn.Parameter(conv.weight * first.scale.view(-1, 1, 1, 1), requires_grad=False)
    bias = first.shift if conv.bias is None else conv.bias * first.scale + first.shift
    conv.bias = nn.Parameter(bias.expand(conv.out_channels).clone(), requires_grad=False)
    for call, (node,) in zip(calls, following, strict=True):
        _replace(node, call)
    return True


def _affine(node: fx.Node, channels: int) -> Affine | None:
    """What a call does to its first argument, where that is a scale and a shift of channels by constants."""
    if node.target is F.batch_norm:
        return _affine_of_batch_norm(node)
    found = constant_operand(node) if node.target in ADDITIONS | MULTIPLICATIONS and not node.kwargs else None
    if found is None:
        return None
    constant = found[1]
    is_per_channel = constant.dim() in (3, 4) and constant.shape[-3] == constant.numel() == channels
    if not is_per_channel and constant.shape != ():
        return None
    constant = constant.detach().flatten()
    is_sum = node.target in ADDITIONS
    return Affine(torch.ones_like(constant), constant) if is_sum else Affine(constant, torch.zeros_like(constant))


def _affine_of_batch_norm(node: fx.Node) -> Affine | None:
    call = inspect.signature(F.batch_norm).bind(*node.args, **node.kwargs)
    call.apply_defaults()
    names = ("running_mean", "running_var", "weight", "bias")
    mean, variance, weight, bias = (call.arguments[name] for name in names)
    given = [arg for arg in (mean, variance, weight, bias) if arg is not None]
    if call.arguments["training"] or mean is None or any(arg.op != "get_attr" for arg in given):
        return None
    scale = (constant_value(variance).detach() + call.arguments["eps"]).rsqrt()
    if weight is not None:
        scale = scale * constant_value(weight).detach()
    shift = -constant_value(mean).detach() * scale
    return Affine(scale, shift if bias is None else shift + constant_value(bias).detach())


def image_convolutions(traced: fx.GraphModule) -> list[nn.Conv2d]:
    """The convolutions that read the input of a network, as it is or after other arithmetic."""
    found: list[nn.Conv2d] = []
    seen: set[fx.Node] = set()
    reached = [node for node in traced.graph.nodes if node.op == "placeholder"]
    while reached:
        for node in readers(reached.pop()):
            if conv := called_module(node, nn.Conv2d):
                found.append(conv)
            elif node not in seen:
                seen.add(node)
                reached.append(node)
    return found


def fuse_convolutions(traced: fx.GraphModule, winograd: bool, output_dtype: torch.dtype) -> None:
    """Replace plain convolutions by `FastConv2d`, which take over additions and activations; for CPUs with oneDNN.

    Args:
        traced: norms are folded, and the weights of each convolution have the type in which it is to run.
        winograd: wide 3×3 convolutions may go through `winograd_conv2d`.
        output_dtype: type of the results of all convolutions.
    """
    for name, conv in list(traced.named_modules()):
        if type(conv) is nn.Conv2d and conv.padding_mode == "zeros" and not isinstance(conv.padding, str):
            owner, _, last = name.rpartition(".")
            setattr(traced.get_submodule(owner), last, FastConv2d(conv, winograd, output_dtype))
    for node in traced.graph.nodes:
        _read_size_earlier(node)
    for node in list(traced.graph.nodes):
        if is_addition(node):
            _take_over_addition(node)
        elif activation_of(node):
            _take_over_activation(node)
    traced.graph.lint()
    traced.recompile()


def _read_size_earlier(node: fx.Node) -> None:
    """Let what reads height or width of a convolution's result read them of its input, if the convolution keeps them.

    The convolution may then wait for an addend whose size depends on them.
    """
    if not is_shape(node) or not all(is_item(user, SPATIAL) for user in node.users):
        return
    while (conv := called_module(operand(node), FastConv2d)) and conv.keeps_size:
        node.args = (operand(node).args[0], *node.args[1:])


def _take_over_activation(node: fx.Node) -> None:
    call, name = operand(node), activation_of(node)
    is_free = is_call_of(call, FastConv2d) and readers(call) == [node] and "activation" not in call.kwargs
    # Behind an addition oneDNN knows no other.
    if is_free and (len(call.args) == 1 or name == "relu"):
        call.kwargs = call.kwargs | {"activation": name}
        _replace(node, call)


def _take_over_addition(node: fx.Node) -> None:
    order = {other: i for i, other in enumerate(node.graph.nodes)}
    call, addend = sorted((operand(node, 0), operand(node, 1)), key=order.__getitem__, reverse=True)
    if not _can_add(call, node):
        call, addend = addend, call
        # It has to wait for the addend. What it reads must not be overwritten meanwhile.
        if not _can_add(call, node) or any(overwritten(user) is operand(call) for user in operand(call).users):
            return
        node.prepend(call)
        order[call] = order[node]
    others = [user for user in addend.users if user is not node]
    is_last = all(order[user] < order[call] and (owns_memory(user) or not reads_values(user)) for user in others)
    overwrite = owns_memory(addend) and is_last and operand(call) is not addend
    call.args = (*call.args, addend)
    call.kwargs = {"overwrite": overwrite}
    _replace(node, call)


def _can_add(call: fx.Node, node: fx.Node) -> bool:
    return is_call_of(call, FastConv2d) and list(call.users) == [node] and len(call.args) == 1 and not call.kwargs


def _replace(node: fx.Node, by: fx.Node) -> None:
    node.replace_all_uses_with(by)
    node.graph.erase_node(node)
