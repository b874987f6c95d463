"""What tests look for in traced networks."""

from collections import Counter

from torch import fx, nn
from torch.nn import functional as F

from sparsercnn.fast.calls import activation_of, is_addition, is_call_of
from sparsercnn.fast.convolution import FastConv2d


def graphs_of(model: nn.Module) -> list[fx.GraphModule]:
    return [module for module in model.modules() if isinstance(module, fx.GraphModule)]


def calls_of(model: nn.Module) -> Counter[str]:
    """How often functions, methods and modules are called, by name."""
    names = Counter()
    for traced in graphs_of(model):
        for node in traced.graph.nodes:
            if node.op == "call_module":
                names[type(traced.get_submodule(node.target)).__name__] += 1
            elif node.op in ("call_function", "call_method"):
                names[getattr(node.target, "__name__", node.target)] += 1
    return names


def fused_calls(model: nn.Module) -> Counter[tuple[str | None, bool]]:
    """How often convolutions are called with that activation, with an addend or without."""
    return Counter(
        (node.kwargs.get("activation"), len(node.args) == 2)
        for traced in graphs_of(model)
        for node in traced.graph.nodes
        if is_call_of(node, FastConv2d)
    )


def missed(model: nn.Module) -> list[str]:
    """Calls that a convolution before them could have taken over: nothing else reads what it gives, or its size."""
    names = []
    for traced in graphs_of(model):
        for node in traced.graph.nodes:
            if not (is_addition(node) or activation_of(node) or node.target is F.batch_norm):
                continue
            for call in (arg for arg in node.args if isinstance(arg, fx.Node) and is_call_of(arg, FastConv2d)):
                if len(call.args) == 1 and not call.kwargs and list(call.users) == [node]:
                    names.append(f"{node.name} after {call.name}")
    return names
