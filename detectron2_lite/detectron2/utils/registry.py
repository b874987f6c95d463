"""`Registry`, which maps names in configs to objects, and the way from an import path to an object."""

import pkgutil
import pydoc
from typing import Any

from fvcore.common.registry import Registry

__all__ = ["Registry", "locate"]


def locate(name: str) -> Any:
    """The object at an import path such as "torch.nn.Linear", "package.module.Class.method" or "int".

    Raises:
        ImportError: nothing is there.
    """
    found = pydoc.locate(name)
    if found is not None:
        return found
    try:
        # Imports where pydoc looks for an attribute: torch.optim deletes its attribute sgd, but not the module.
        return pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as e:
        raise ImportError(f"Cannot dynamically locate object {name}!") from e
