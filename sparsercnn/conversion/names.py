"""Renaming tensors between code bases by one table, read in both directions."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import Tensor

from ..errors import InputError

Rule = tuple[str, str | Callable[[re.Match[str]], str]]
"""A pattern of one of our names, or of its beginning, and what takes its place in theirs."""

# Batch norms count batches where they train; nothing reads the number, and frozen norms have none.
COUNTER = "num_batches_tracked"
NAMES_SHOWN = 5


def renamed(name: str, rules: Sequence[Rule]) -> str:
    """Their name of one of our tensors: the first rule whose pattern begins it replaces that beginning."""
    for pattern, replacement in rules:
        new, found = re.subn(rf"^{pattern}", replacement, name)
        if found:
            return new
    return name


def filled(theirs: Mapping[str, Tensor], ours: Iterable[str], their_name: Callable[[str], str]) -> dict[str, Tensor]:
    """Our names with their tensors.

    Args:
        theirs: a foreign state dict.
        ours: names to fill. Counters of batch norms that `theirs` lacks are left out.
        their_name: of one of our names.

    Raises:
        InputError: `theirs` lacks a name.
    """
    names = {name: their_name(name) for name in ours}
    lacking = [new for new in names.values() if new not in theirs and not new.endswith(COUNTER)]
    if lacking:
        raise InputError(f"these weights lack {some(lacking)}: they are of another model")
    return {name: theirs[new] for name, new in names.items() if new in theirs}


def some(names: Sequence[str]) -> str:
    """The first of the names, for a message, and how many more there are."""
    more = f", and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return f"{', '.join(names[:NAMES_SHOWN])}{more}"
