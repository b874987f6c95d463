"""`Registry`, which maps names in configs to objects, and the way from an import path to an object."""

import pydoc
from typing import Any

from fvcore.common.registry import Registry

__all__ = ["Registry", "locate"]


def locate(name: str) -> Any:
    """The object at an import path such as "torch.nn.Linear" or "package.module.Class.method".

    Raises:
        ImportError: nothing is there.
    """
    found = pydoc.locate(name)
    if found is None:
        raise ImportError(f"Cannot dynamically locate object {name}!")
    return found
