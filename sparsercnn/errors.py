"""The one exception for mistakes in what a user gives: configs, data, weights; and how its messages offer choices."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Says which file, key or value is wrong and what to do, in one line (lists may continue on indented lines).

    The command-line programs print it as `error: …` and exit with status 2.
    """

    def __str__(self) -> str:
        # From a worker of a data loader it arrives with that process's traceback in front.
        return super().__str__().rpartition("InputError: ")[2].strip()


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """`"; did you mean X?"` for the choice that is spelled most like `name`, empty if none is."""
    close = difflib.get_close_matches(name, list(choices), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def check_choice(key: str, name: str, choices: Iterable[str]) -> None:
    """Check the value of a config key that names one of several things.

    Args:
        key: the config key, for the message.
        name: its value.
        choices: the values that it may have.

    Raises:
        InputError: `name` is not one of them.
    """
    choices = list(choices)
    if name not in choices:
        raise InputError(f"{key} is {name!r}; choose one of {', '.join(choices)}{did_you_mean(name, choices)}")


def one_line(text: str) -> str:
    """`text` with what does not print, line breaks above all, escaped, so that it fits into a message."""
    return text if text.isprintable() else repr(text)[1:-1]
