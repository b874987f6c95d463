"""Mistakes in arguments and in configs, and how the one becomes the other.

What is built without a config speaks of its arguments. Where a config is read, `config_errors` puts the keys in.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class NeckConfigError(ValueError):
    """A mistake in the config of a neck or of the network below it. The message is one line."""


def choose(what: str, name: str, choices: Mapping[str, T] | Iterable[tuple[str, T]]) -> T:
    """Look `name` up in `choices`.

    Args:
        what: argument or config key that `name` is the value of, for the message.
        name: one of the names in `choices`.
        choices: names and what they stand for, as a mapping or as pairs.

    Raises:
        ValueError: no such name. The message lists those that there are.
    """
    choices = dict(choices)
    if name not in choices:
        raise ValueError(f"{what} is {name!r}; it must be one of {', '.join(sorted(choices))}")
    return choices[name]


def check_at_least(argument: str, value: float, minimum: float) -> None:
    """Raise a ValueError that names the `argument` if its `value` is below `minimum`."""
    if not value >= minimum:
        raise ValueError(f"{argument} is {value}; it must be at least {minimum}")


@contextmanager
def config_errors(where: str, keys: Mapping[str, str]) -> Iterator[None]:
    """Turn every ValueError of the block into a NeckConfigError that names the config key instead of the argument.

    Args:
        where: put before a message that does not start with a config key, for example "MODEL.NECK (PANet)".
        keys: the config key of each argument. An argument is recognized in a message by the "is" or "has" after it.
    """
    try:
        yield
    except NeckConfigError:
        raise
    except ValueError as error:
        message = re.sub(r"\b\w+\b(?= (?:is|has)\b)", lambda word: keys.get(word[0], word[0]), str(error))
        starts_with_key = re.match(r"[A-Z]+\.[A-Z]", message)
        raise NeckConfigError(message if starts_with_key else f"{where}: {message}") from error
