"""Memory for time: keep only what goes into a block, and compute its inside again in the backward pass.

Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016.
"""

import contextlib
import ctypes
import sys
from collections.abc import Iterator
from functools import partial

import torch
from detectron2.layers import CNNBlockBase
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..head import RefinementStage

M_MMAP_THRESHOLD = -3
"""Of glibc's malloc.h."""
BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)


def checkpoint_gradients(model: nn.Module) -> None:
    """Recompute the blocks of the backbone and the refinement stages of the head in the backward pass, in place.

    A block is a `CNNBlockBase`, as in detectron2's ResNet; networks of timm decide about theirs.
    """
    if next(model.parameters()).device.type == "cpu":
        _return_freed_memory()
    for module in model.modules():
        if isinstance(module, (CNNBlockBase, RefinementStage)):
            module.forward = partial(_forward, module)
        elif hasattr(module, "set_grad_checkpointing"):
            module.set_grad_checkpointing(True)


def _return_freed_memory() -> None:
    """Let the C library (glibc) give the memory of freed tensors back at once.

    It would keep what is smaller than 32 MiB, and the gaps between what lives longer add up to hundreds of MiB.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 2**22)


def _forward(module: nn.Module, *inputs):
    forward = partial(type(module).forward, module)
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
