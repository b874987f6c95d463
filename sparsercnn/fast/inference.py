"""A trained model made fast for inference, with the same results."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import fx, nn

from ..modeling.detector import SparseRCNN
from ..modeling.head import RefinementStage
from ..modeling.inference import InferenceModel
from ..modeling.pooler import FusedPooler
from .convolution import FastConv2d
from .fusion import fold_norms, fuse_convolutions, image_convolutions
from .on_demand import convolve_on_demand
from .packed_linear import pack_linear_layers
from .processor import has_onednn, winograd_pays
from .tracing import TracedBackbone, trace_networks
from .training import use_channels_last

MAX_COMPILED_SIZES = 256
"""Padded sizes differ by the stride of the highest level: COCO's images at 800 pixels have a few dozen."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What `prepare_for_inference` does on CPUs, part by part, so that a benchmark can leave one out.

    Attributes:
        winograd: convolve wide layers with fewer multiplications, see `winograd`.
        on_demand: convolve the finest level where boxes read it only, see `on_demand`.
        packed_linear: rearrange the weights of large linear layers once, see `packed_linear`.
    """

    winograd: bool = True
    on_demand: bool = True
    packed_linear: bool = True


def prepare_for_inference(
    model: nn.Module, dtype: torch.dtype = torch.float32, compile: bool = False
) -> InferenceModel:
    """A copy of a detector for inference only; it takes and returns what the detector does in eval mode.

    Batch norms are folded into convolutions, and convolutions use the channels-last layout and on CPUs take over the
    activations and additions that follow them. The model itself stays as it is. Train, change and save the model, and
    not the copy: most of the copy's weights are rearranged, its backbone is a graph of calls, and on CPUs the finest
    level may be left to the head, see `on_demand`.

    Args:
        model: a `SparseRCNN`, any detectron2 model, or a backbone, on the device where it is to run.
        dtype: torch.bfloat16 or torch.float16 run convolutions and matrix products in that precision (autocast). Boxes
            and scores of Sparse R-CNN stay float32, as do its feed-forward layers and on CPUs the convolutions that
            read the image.
        compile: compile with `torch.compile`, once for each padded image size that comes. For GPUs: on CPUs it would
            gain nothing and is not done.

    Raises:
        ValueError: the model is such a copy itself.
    """
    return prepare_parts(model, dtype, compile, Parts())


def prepare_parts(model: nn.Module, dtype: torch.dtype, compile: bool, parts: Parts) -> InferenceModel:
    """`prepare_for_inference` with some of its parts."""
    if any(isinstance(module, InferenceModel | TracedBackbone | FastConv2d) for module in model.modules()):
        raise ValueError("the model is prepared for inference already; prepare the one that it was made from")
    device_type = next(model.parameters()).device.type
    is_fast = device_type == "cpu" and has_onednn(dtype)
    compile = compile and device_type != "cpu"
    model = trace_networks(copy.deepcopy(model).eval().requires_grad_(False))
    graphs = [module for module in model.modules() if isinstance(module, fx.GraphModule)]
    for graph in graphs:
        fold_norms(graph)
    full_precision = set(_full_precision_layers(model, is_fast))
    # Once, instead of a cast of every weight in every forward pass under autocast.
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module not in full_precision:
            module.to(dtype)
    use_channels_last(model)
    if is_fast:
        for graph in graphs:
            fuse_convolutions(graph, parts.winograd and winograd_pays(dtype), dtype)
    if isinstance(model, SparseRCNN):
        if is_fast and parts.packed_linear:
            pack_linear_layers(model.head, rows=model.num_proposals)
        if is_fast and parts.on_demand:
            convolve_on_demand(model)
    if compile:
        _compile(model)
    return InferenceModel(model, device_type, dtype)


def _full_precision_layers(model: nn.Module, is_fast: bool) -> Iterator[nn.Module]:
    """Layers that keep float32 weights, whatever the precision of the others."""
    for module in model.modules():
        if isinstance(module, RefinementStage):
            for layer in module.full_precision_layers():
                yield from layer.modules()
        # Rounding the image costs most precision. Fast convolutions keep theirs also under autocast.
        if isinstance(module, TracedBackbone) and is_fast:
            yield from image_convolutions(module.traced)


def _compile(model: nn.Module) -> None:
    """Compile the backbone, the refinement stages and the arithmetic of pooling, all in place."""
    torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, MAX_COMPILED_SIZES)
    getattr(model, "backbone", model).compile(dynamic=False)
    if not isinstance(model, SparseRCNN):
        return
    for stage in model.head.head_series:
        stage.compile(dynamic=False)
    pooler = model.head.routing.pooler
    if isinstance(pooler, FusedPooler):
        pooler.bins.compile(dynamic=False)
