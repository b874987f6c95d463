"""A second and a third chance for a function that runs out of GPU memory."""

import logging
from collections.abc import Callable
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch

__all__ = ["retry_if_cuda_oom"]


@contextmanager
def _ignore_torch_cuda_oom():
    """Swallow CUDA's out-of-memory error and nothing else."""
    try:
        yield
    except RuntimeError as e:
        if "CUDA out of memory. " not in str(e):
            raise


def retry_if_cuda_oom(func: Callable) -> Callable:
    """Make `func` retry when CUDA memory runs out: first after emptying the cache, then with its inputs on the CPU.

    In the last case the outputs are on the CPU too. Only tensors among the direct arguments are moved, and a function
    with side effects may have them more than once.
    """

    def to_cpu(x: Any) -> Any:
        on_gpu = getattr(getattr(x, "device", None), "type", None) == "cuda"
        return x.to(device="cpu") if on_gpu and hasattr(x, "to") else x

    @wraps(func)
    def wrapped(*args, **kwargs):
        with _ignore_torch_cuda_oom():
            return func(*args, **kwargs)
        torch.cuda.empty_cache()
        with _ignore_torch_cuda_oom():
            return func(*args, **kwargs)
        logging.getLogger(__name__).info(f"Attempting to copy inputs of {func} to CPU due to CUDA OOM")
        return func(*(to_cpu(x) for x in args), **{k: to_cpu(v) for k, v in kwargs.items()})

    return wrapped
