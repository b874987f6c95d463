"""The one exception for mistakes in what a user gives: configs, data, weights."""


class InputError(ValueError):
    """Says which file, key or value is wrong and what to do, in one line (lists may continue on indented lines).

    The command-line programs print it as `error: …` and exit with status 2.
    """
