"""Logging to the terminal in color and to one file per process, and messages that do not repeat too often."""

import atexit
import functools
import logging
import os
import sys
import time
from collections import Counter

import torch
from tabulate import tabulate
from termcolor import colored

from detectron2.utils.file_io import PathManager

__all__ = ["setup_logger", "log_first_n", "log_every_n", "log_every_n_seconds", "create_small_table"]

_DATE_FORMAT = "%m/%d %H:%M:%S"


class _ColorfulFormatter(logging.Formatter):
    """Shortens the root logger's name and marks warnings and errors."""

    def __init__(self, *args, root_name: str, abbrev_name: str, **kwargs):
        self._root_name = root_name + "."
        self._abbrev_name = abbrev_name + "." if abbrev_name else ""
        super().__init__(*args, **kwargs)

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.name = record.name.replace(self._root_name, self._abbrev_name)
        message = super().formatMessage(record)
        if record.levelno == logging.WARNING:
            return colored("WARNING", "red", attrs=["blink"]) + " " + message
        if record.levelno in (logging.ERROR, logging.CRITICAL):
            return colored("ERROR", "red", attrs=["blink", "underline"]) + " " + message
        return message


@functools.cache  # a second call with the same arguments must not add the handlers again
def setup_logger(
    output: str | None = None,
    distributed_rank: int = 0,
    *,
    color: bool = True,
    name: str = "detectron2",
    abbrev_name: str | None = None,
    enable_propagation: bool = False,
    configure_stdout: bool = True,
) -> logging.Logger:
    """Set up the logger `name` and with it all loggers below it, at level DEBUG.

    Args:
        output: a .txt or .log file, or a folder for log.txt. Process r > 0 appends `.rank{r}`. None writes no file.
        distributed_rank: number of this process; only 0 writes to the terminal.
        color: whether to color the terminal's output.
        name: the logger.
        abbrev_name: what the terminal shows instead of `name`; "d2" for detectron2 by default, "" hides it.
        enable_propagation: whether messages also go to the loggers above.
        configure_stdout: whether to write to the terminal at all.
    """
    logger = logging.getLogger(name)
    logger.setLevel(logging.DEBUG)
    logger.propagate = enable_propagation
    if abbrev_name is None:
        abbrev_name = "d2" if name == "detectron2" else name
    plain = logging.Formatter("[%(asctime)s] %(name)s %(levelname)s: %(message)s", datefmt=_DATE_FORMAT)

    if configure_stdout and distributed_rank == 0:
        terminal = logging.StreamHandler(stream=sys.stdout)
        terminal.setLevel(logging.DEBUG)
        if color:
            prefix = colored("[%(asctime)s %(name)s]: ", "green")
            formatter = _ColorfulFormatter(
                prefix + "%(message)s", datefmt=_DATE_FORMAT, root_name=name, abbrev_name=str(abbrev_name)
            )
        else:
            formatter = plain
        terminal.setFormatter(formatter)
        logger.addHandler(terminal)

    if output is not None:
        filename = output if output.endswith((".txt", ".log")) else os.path.join(output, "log.txt")
        if distributed_rank > 0:
            filename = f"{filename}.rank{distributed_rank}"
        PathManager.mkdirs(os.path.dirname(filename) or ".")
        file = logging.StreamHandler(_cached_log_stream(filename))
        file.setLevel(logging.DEBUG)
        file.setFormatter(plain)
        logger.addHandler(file)
    return logger


@functools.cache  # loggers of different names may share a file
def _cached_log_stream(filename: str):
    # by line on a local disk; on a remote one, where a flush is an upload, by megabyte
    buffering = 1024 * 1024 if "://" in filename else 1
    stream = PathManager.open(filename, "a", buffering=buffering)
    atexit.register(stream.close)
    return stream


def _find_caller() -> tuple[str, tuple]:
    """Module name of the first caller outside this file, and a key for the place of the call."""
    frame = sys._getframe(2)
    while frame:
        code = frame.f_code
        if os.path.join("utils", "logger.") not in code.co_filename:
            module = frame.f_globals["__name__"]
            if module == "__main__":
                module = "detectron2"
            return module, (code.co_filename, frame.f_lineno, code.co_name)
        frame = frame.f_back
    raise RuntimeError("called from nowhere")


_LOG_COUNTER: Counter = Counter()
_LOG_TIMER: dict[tuple, float] = {}


def log_first_n(
    lvl: int, msg: str, n: int = 1, *, name: str | None = None, key: str | tuple[str, ...] = "caller"
) -> None:
    """Log only the first n times.

    Args:
        lvl: a level of `logging`.
        msg: the message.
        n: how many times.
        name: the logger; the caller's module by default.
        key: what makes two calls the same: "caller", the place of the call; "message", its text; or both in a tuple.
    """
    if isinstance(key, str):
        key = (key,)
    assert len(key) > 0
    caller_module, caller_key = _find_caller()
    hash_key: tuple = ()
    if "caller" in key:
        hash_key += caller_key
    if "message" in key:
        hash_key += (msg,)
    _LOG_COUNTER[hash_key] += 1
    if _LOG_COUNTER[hash_key] <= n:
        logging.getLogger(name or caller_module).log(lvl, msg)


def log_every_n(lvl: int, msg: str, n: int = 1, *, name: str | None = None) -> None:
    """Log the first of every n calls from one place."""
    caller_module, key = _find_caller()
    _LOG_COUNTER[key] += 1
    if n == 1 or _LOG_COUNTER[key] % n == 1:
        logging.getLogger(name or caller_module).log(lvl, msg)


def log_every_n_seconds(lvl: int, msg: str, n: int = 1, *, name: str | None = None) -> None:
    """Log at most once in n seconds from one place."""
    caller_module, key = _find_caller()
    last, now = _LOG_TIMER.get(key), time.time()
    if last is None or now - last >= n:
        logging.getLogger(name or caller_module).log(lvl, msg)
        _LOG_TIMER[key] = now


def create_small_table(small_dict: dict) -> str:
    """One row of values under their names, for a few numbers."""
    keys, values = zip(*small_dict.items(), strict=True)
    return tabulate([values], headers=keys, tablefmt="pipe", floatfmt=".3f", stralign="center", numalign="center")


def _log_api_usage(identifier: str) -> None:
    """Tell torch's own usage hook, which does nothing unless someone sets it."""
    torch._C._log_api_usage_once("detectron2." + identifier)
