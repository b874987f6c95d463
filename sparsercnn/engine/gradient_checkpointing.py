"""Memory for time: keep only what goes into a piece of a network, and compute its inside again in the backward pass.

Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

import torch
from detectron2.layers import CNNBlockBase
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)


def checkpoint_gradients(model: nn.Module) -> None:
    """Let all parts of a model that can do so recompute in the backward pass, in place.

    Modules that offer `set_grad_checkpointing`, as `DynamicHead` and timm's networks do, decide about their pieces. In
    detectron2's ResNets a piece is half of a stage: what whole stages would have to hold while they are recomputed, and
    what single blocks keep from the forward pass, is more. Blocks that are not called through such a stage are pieces
    by themselves.
    """
    for module in model.modules():
        offer = getattr(module, "set_grad_checkpointing", None)
        if callable(offer):
            offer(True)
        elif isinstance(module, nn.Sequential) and _is_stage(module):
            module.forward = partial(_forward_halves, module)  # type: ignore[method-assign]
        elif isinstance(module, CNNBlockBase):
            module.forward = partial(_recompute, module, partial(type(module).forward, module))


def _is_stage(module: nn.Sequential) -> bool:
    return type(module) is nn.Sequential and len(module) > 0 and all(isinstance(m, CNNBlockBase) for m in module)


def _forward_halves(stage: nn.Sequential, x: Tensor) -> Tensor:
    blocks = list(stage)
    middle = (len(blocks) + 1) // 2
    for half in (blocks[:middle], blocks[middle:]):
        x = _recompute(stage, partial(_forward_blocks, half), x)
    return x


def _forward_blocks(blocks: list[nn.Module], x: Tensor) -> Tensor:
    for block in blocks:
        x = type(block).forward(block, x)  # not as a piece by itself
    return x


def _recompute(module: nn.Module, forward: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """What `forward`, some or all of the module, makes of the inputs; only these are kept for its gradient."""
    if not torch.is_grad_enabled():
        return forward(*inputs)
    return checkpoint(
        forward, *inputs, use_reentrant=False, context_fn=lambda: (contextlib.nullcontext(), _seen_already(module))
    )


@contextlib.contextmanager
def _seen_already(module: nn.Module) -> Iterator[None]:
    """Batch norms must not count a batch in their running statistics when it comes for the second time."""
    norms = [m for m in module.modules() if isinstance(m, BATCH_NORMS) and m.track_running_stats]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
