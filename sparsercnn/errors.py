"""The one exception for mistakes in what a user gives: configs, data, weights."""


class InputError(ValueError):
    """Says which file, key or value is wrong and what to do, in one line (lists may continue on indented lines).

    The command-line programs print it as `error: …` and exit with status 2.
    """

    def __str__(self) -> str:
        # From a worker of a data loader it arrives with that process's traceback in front.
        return super().__str__().rpartition("InputError: ")[2].strip()
