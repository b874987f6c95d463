"""The forward method of a module as a graph of calls, which holds for inputs of any size.

`torch.fx` runs the method once, with stand-ins for tensors that record what is done to them. Python code that must know
a value, such as a comparison of sizes, cannot run on them: the function or the module around it then becomes one call
of the graph, and runs as it is whenever the graph does.
"""

import ast
import contextlib
import inspect
import operator
import sys
import textwrap
from collections.abc import Callable, Collection, Iterator
from traceback import walk_stack, walk_tb
from types import FrameType, FunctionType, ModuleType, TracebackType
from typing import Any, cast

from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from .calls import erase_checks, has_plain_order
from .training_convolution import WinogradConv2d

CONVOLUTIONS = (nn.Conv2d, Conv2d, WinogradConv2d)
GEOMETRY = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
"""Arguments of `nn.Conv2d` that it keeps as attributes."""
BARE = "conv"
"""Name of the plain convolution in the place of a detectron2 `Conv2d`, beside its `norm`."""
Leaf = FunctionType | nn.Module


def trace(module: nn.Module) -> fx.GraphModule | None:
    """A module that does in evaluation mode what `module` does, as calls of functions and of the modules with weights.

    A detectron2 `Conv2d` becomes a call of a plain convolution, then calls of its norm and its activation.

    Returns:
        A graph with the weights of `module`. None if its own code needs values, or if it writes into tensors in such a
        way that the order of the calls matters beyond their arguments.
    """
    leaves: set[Leaf] = set()
    while True:
        tracer = _Tracer(leaves)
        try:
            with tracer.recording_calls(module):
                graph = tracer.trace(module)
            break
        except Exception as error:  # whatever code raises that did not expect stand-ins
            around = (leaf for leaf in _calls_around(error.__traceback__) if leaf not in leaves)
            leaf = next(around, module)
            if leaf is module:
                return None
            leaves.add(leaf)
    names = {node.target for node in graph.nodes if node.op in ("call_module", "get_attr")}
    traced = fx.GraphModule({name: _find(module, name) for name in names}, graph, type(module).__name__)
    erase_checks(traced.graph)
    if not has_plain_order(traced.graph):
        return None
    traced.recompile()
    return traced


class TracedBackbone(Backbone):
    """A backbone of which nothing is left but what it computes and the facts that a detector asks for.

    Args:
        backbone: gives the facts.
        traced: computes.
    """

    def __init__(self, backbone: Backbone, traced: fx.GraphModule):
        super().__init__()
        self.traced = traced
        self._shapes = backbone.output_shape()
        self._size_divisibility = backbone.size_divisibility
        self._padding_constraints = backbone.padding_constraints

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """What the backbone gives for (B, C, H, W) images."""
        return self.traced(images)

    def output_shape(self) -> dict[str, ShapeSpec]:
        return self._shapes

    @property
    def size_divisibility(self) -> int:
        return self._size_divisibility

    @property
    def padding_constraints(self) -> dict[str, int]:
        return self._padding_constraints


def trace_networks(model: nn.Module) -> nn.Module:
    """`model`, changed in place, or what takes its place: traced as a whole, or else its backbones and convolutions.

    What a backbone is, detectron2's class says. Of a model that is neither traced as a whole nor a backbone all
    attributes and parts stay; those parts that are convolutions or `nn.Sequential` run as traced.
    """
    traced = trace(model)
    if traced is None:
        for name, child in model.named_children():
            if isinstance(child, Backbone) and (found := trace(child)) is not None:
                setattr(model, name, TracedBackbone(child, _with_traced_leaves(found)))
            else:
                _trace_parts(child)
        return model
    traced = _with_traced_leaves(traced)
    return TracedBackbone(model, traced) if isinstance(model, Backbone) else traced


def _trace_parts(module: nn.Module) -> None:
    if not any(isinstance(part, nn.Conv2d) for part in module.modules()) or "forward" in vars(module):
        return
    is_conv = type(module) in CONVOLUTIONS
    traced = trace(nn.Sequential(module) if is_conv else module) if is_conv or type(module) is nn.Sequential else None
    if traced is None:
        for child in module.children():
            _trace_parts(child)
    else:
        # The parts stay: somebody may read their attributes, or call them one by one.
        module.traced = vars(module)["forward"] = _with_traced_leaves(traced)


def _with_traced_leaves(traced: fx.GraphModule) -> fx.GraphModule:
    for name in {node.target for node in traced.graph.nodes if node.op == "call_module"}:
        if type(leaf := traced.get_submodule(name)) is not nn.Conv2d:
            _trace_parts(leaf)
    return traced


def plain_convolution(conv: nn.Conv2d) -> nn.Conv2d:
    """The same convolution, with the same weights, without the norm and the activation of detectron2's `Conv2d`."""
    plain = nn.Conv2d(**{name: getattr(conv, name) for name in GEOMETRY}, device="meta")
    plain.weight, plain.bias = conv.weight, conv.bias
    return plain


class _Tracer(fx.Tracer):
    """Looks into all modules but those of `torch.nn` with weights and the `leaves`."""

    def __init__(self, leaves: Collection[Leaf] = ()):
        super().__init__()
        self.leaves = leaves

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        if module in self.leaves:
            return True
        is_batch_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
        has_weights = next(module.parameters(recurse=False), None) is not None
        return has_weights and super().is_leaf_module(module, name) and not is_batch_norm

    def call_module(self, module: nn.Module, forward: Callable, args: tuple, kwargs: dict) -> Any:
        if not isinstance(module, Conv2d) or type(module) not in CONVOLUTIONS or module in self.leaves:
            return super().call_module(module, forward, args, kwargs)
        x = self.create_proxy("call_module", f"{self.path_of_module(module)}.{BARE}", args, kwargs)
        x = x if module.norm is None else module.norm(x)
        return x if module.activation is None else module.activation(x)

    def getattr(self, attr: str, attr_val: object, parameter_proxy_cache: dict) -> object:
        """Parameters stay what they are, so that what is computed from them alone becomes a constant."""
        return attr_val

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def to_bool(self, obj: fx.Proxy) -> bool:
        frame = next(frame for frame, _ in walk_stack(inspect.currentframe()) if _is_recorded(frame))
        outcome = _outcome_of_check(frame)
        return super().to_bool(obj) if outcome is None else outcome

    @contextlib.contextmanager
    def recording_calls(self, module: nn.Module) -> Iterator[None]:
        """Let calls of the functions among the leaves become part of the graph, by whatever name they are called."""
        places = []
        for function in (leaf for leaf in self.leaves if isinstance(leaf, FunctionType)):
            files = [vars(m) for m in sys.modules.values() if isinstance(m, ModuleType)]
            places += [(names, function.__name__, function) for names in files]
            places += [(vars(m), name, function) for m in module.modules() for name in vars(m)]
        places = [(names, name, function) for names, name, function in places if names.get(name) is function]
        for namespace, name, function in places:
            namespace[name] = self._recorder(function)
        try:
            yield
        finally:
            for namespace, name, function in places:
                namespace[name] = function

    def _recorder(self, function: FunctionType) -> Callable:
        def record(*args: Any, **kwargs: Any) -> Any:
            values: list[object] = []
            map_aggregate((args, kwargs), values.append)
            if any(isinstance(value, fx.Proxy) for value in values):
                return self.create_proxy("call_function", function, args, kwargs)
            return function(*args, **kwargs)

        return record


class _Proxy(fx.Proxy):
    """Stands in for a tensor of inference, of which no attribute is set."""

    requires_grad = False

    def __setattr__(self, name: str, value: object) -> None:
        if name not in ("node", "tracer"):
            raise TypeError(f"an assignment to the attribute {name} is no call")
        super().__setattr__(name, value)


def _find(module: nn.Module, name: str) -> nn.Module | Tensor:
    owner, _, last = name.rpartition(".")
    if last == BARE and isinstance(conv := module.get_submodule(owner), Conv2d):
        return plain_convolution(conv)
    found = operator.attrgetter(name)(module)
    return plain_convolution(found) if type(found) is nn.Conv2d else found


def _calls_around(traceback: TracebackType | None) -> Iterator[Leaf]:
    """The functions of a file and the modules whose code was running, innermost first."""
    frames = [frame for frame, _ in walk_tb(traceback)]
    for frame in filter(_is_recorded, reversed(frames)):
        function = frame.f_globals.get(frame.f_code.co_name)
        if isinstance(function, FunctionType) and inspect.unwrap(function).__code__ is frame.f_code:
            yield function
        if isinstance(owner := frame.f_locals.get("self"), nn.Module):
            yield owner


def _is_recorded(frame: FrameType) -> bool:
    name = frame.f_globals.get("__name__", "")
    return not name.startswith("torch.fx") and name != __name__


def _outcome_of_check(frame: FrameType) -> bool | None:
    """What a condition is that only guards against errors: True in an `assert`, False in an `if` that does but raise.

    None for the condition of any other statement.
    """
    try:
        lines, start = inspect.getsourcelines(frame.f_code)
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, SyntaxError):
        return None
    line = frame.f_lineno - start + 1
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert | ast.If) and node.test.lineno <= line <= cast(int, node.test.end_lineno):
            if isinstance(node, ast.Assert) or all(isinstance(statement, ast.Raise) for statement in node.body):
                return isinstance(node, ast.Assert)
    return None
