"""`Registry`, which maps names in configs to objects, and the way from an import path to an object."""

import pydoc
from typing import Any

from fvcore.common.registry import Registry

__all__ = ["Registry", "locate"]


def _convert_target_to_string(t: Any) -> str:
    """Import path of a class or function, shortened as far as the short path still leads to the same object."""
    module, qualname = t.__module__, t.__qualname__
    parts = module.split(".")
    for k in range(1, len(parts)):
        prefix = ".".join(parts[:k])
        if pydoc.locate(f"{prefix}.{qualname}") is t:
            return f"{prefix}.{qualname}"
    return f"{module}.{qualname}"


def locate(name: str) -> Any:
    """The object at an import path such as "torch.nn.Linear" or "package.module.Class.method".

    Raises:
        ImportError: nothing is there.
    """
    found = pydoc.locate(name)
    if found is None:
        raise ImportError(f"Cannot dynamically locate object {name}!")
    return found
