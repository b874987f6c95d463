"""What the values of config keys must be, in words and as a test; `run_table` and `model_table` use it."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from detectron2.config import CfgNode
from fvcore.common.registry import Registry


@dataclass(frozen=True)
class Requirement:
    """What a value, or several values together, must be.

    Attributes:
        says: of one value, the end of the sentence "it must …"; of several values, a sentence.
        holds: whether it is so, for any value or values.
    """

    says: str
    holds: Callable[..., bool]


@dataclass(frozen=True)
class Checks:
    """Checks that go together.

    Attributes:
        applies: to which configs.
        choices: of keys that name one of several things.
        values: what the value of a key must be.
        relations: what the values of several keys together must be.
        doubtful: relations without which a config runs, but hardly as it was meant.
    """

    applies: Callable[[CfgNode], bool]
    choices: dict[str, Iterable[str] | Registry] = field(default_factory=dict)
    values: dict[str, Requirement] = field(default_factory=dict)
    relations: dict[tuple[str, ...], Requirement] = field(default_factory=dict)
    doubtful: dict[tuple[str, ...], Requirement] = field(default_factory=dict)


def is_number(x: object) -> bool:
    """Whether `x` is an integer or a finite floating-point number."""
    return isinstance(x, int | float) and not isinstance(x, bool) and (isinstance(x, int) or math.isfinite(x))


def at_least(smallest: float) -> Requirement:
    """A number that is not below `smallest`."""
    return Requirement(f"be at least {smallest}", lambda x: is_number(x) and x >= smallest)


def at_most(largest: float) -> Requirement:
    """A number that is not above `largest`."""
    return Requirement(f"be at most {largest}", lambda x: is_number(x) and x <= largest)


def above(limit: float) -> Requirement:
    """A number above `limit`."""
    return Requirement(f"be above {limit} and finite", lambda x: is_number(x) and x > limit)


def below(limit: float) -> Requirement:
    """A number below `limit`."""
    return Requirement(f"be below {limit}", lambda x: is_number(x) and x < limit)


def between(smallest: float, largest: float) -> Requirement:
    """A number from `smallest` to `largest`, both included."""
    return Requirement(f"be from {smallest} to {largest}", lambda x: is_number(x) and smallest <= x <= largest)


def inside(low: float, high: float) -> Requirement:
    """A number from `low` to `high`, both excluded."""
    return Requirement(f"be between {low} and {high}, without these", lambda x: is_number(x) and low < x < high)


def one_of(*values: object) -> Requirement:
    """One of these values; names are better checked with `check_choice`, which finds what was meant."""
    return Requirement(f"be one of {', '.join(map(str, values))}", lambda x: x in values)


def each(requirement: Requirement, shortest: int = 1, longest: float = math.inf) -> Requirement:
    """A list of at least `shortest` and at most `longest` values, every one as the requirement says."""
    length = str(shortest) if longest == shortest else f"{shortest} or more"

    def holds(values: object) -> bool:
        if not isinstance(values, Sequence) or isinstance(values, str):
            return False
        return shortest <= len(values) <= longest and all(requirement.holds(x) for x in values)

    return Requirement(f"be a list of {length} values, each of which must {requirement.says}", holds)


def every(*requirements: Requirement) -> Requirement:
    """All of the requirements."""
    return Requirement(" and ".join(r.says for r in requirements), lambda *x: all(r.holds(*x) for r in requirements))


def unless(exception: Any, requirement: Requirement) -> Requirement:
    """As `requirement`, or the one value that means something else."""
    return Requirement(f"{requirement.says}, or {exception}", lambda x: x == exception or requirement.holds(x))


NUMBER = Requirement("be a finite number", is_number)
WORD = Requirement("be a word", lambda x: isinstance(x, str) and x != "")
INCREASING = Requirement("increase", lambda values: all(a < b for a, b in zip(values, values[1:], strict=False)))
SMALLEST_FIRST = Requirement("begin with the smallest", lambda values: min(values) == values[0])


def describe(values: Iterable[tuple[str, object]]) -> str:
    """Keys and their values as the beginning of a message: "A is 1 and B is 2"."""
    return " and ".join(
        f"{key} is {value!r}" if isinstance(value, str) else f"{key} is {value}" for key, value in values
    )
