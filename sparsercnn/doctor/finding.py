"""What the doctor says: a thing that is wrong, and the line that mends it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """Something because of which a training does not work, or hardly.

    Attributes:
        about: what was looked at, such as "learning rate".
        problem: what is wrong, in a sentence.
        change: the line to change, `KEY VALUE` where a config key mends it.
    """

    about: str
    problem: str
    change: str

    def __str__(self) -> str:
        return f"{self.about}: {self.problem}\n    change: {self.change}"
