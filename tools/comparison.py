"""What the programs that compare trainings share: how they are called, and how they end."""

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from sparsercnn.errors import InputError


def at_least(least: int) -> Callable[[str], int]:
    """A type for argparse: integers from `least`."""

    def integer(text: str) -> int:
        if (number := int(text)) < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}")
        return number

    return integer


def parse_configs(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """Parse a command line with config files and then config options among the flags.

    Returns:
        Besides what `parser` defines, `configs`, the paths, and `opts`, the words after them.
    """
    parser.add_argument("words", nargs="+", metavar="CONFIG.yaml … [KEY VALUE …]", help="configs, then options")
    args = parser.parse_intermixed_args(argv)
    args.configs = [Path(word) for word in args.words if word.endswith((".yaml", ".yml"))]
    args.opts = args.words[len(args.configs) :]
    if not args.configs or any(word.endswith((".yaml", ".yml")) for word in args.opts):
        parser.error("give the configs (.yaml) first, then the options")
    return args


def run(program: str, argv: Sequence[str], compare: Callable[[str], int]) -> int:
    """Do a comparison that continues where it was stopped, and return the exit status of its program.

    Args:
        program: its path.
        argv: its arguments.
        compare: does it and returns the exit status, given the command line as a user would type it.
    """
    try:
        return compare(shlex.join(["python", program, *argv]))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nStopped. Continue with the same command.", file=sys.stderr)
        return 130
