"""Pickles of tensors, arrays and plain values, read without Python's unpickler.

A pickle is a program for a stack machine that may import and call anything. The machine here has the instructions that
checkpoints are made of, and calls nothing but the functions of `pickled_objects`, which stand in for those that a file
names. What a file makes it hold is bounded by the size of the file and by `MAX_VALUES`.
"""

import itertools
import pickletools
from collections import Counter, OrderedDict
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from .pickled_objects import (
    MAX_VALUES,
    ArrayType,
    Budget,
    DamagedError,
    ForeignObjectError,
    Function,
    Storage,
    StorageType,
    checked_key,
    fill_array,
    known_names,
    natural,
    of_type,
    set_byte_order,
    set_module_versions,
)

# Containers in one another; a training's state has about ten.
MAX_DEPTH = 64
# Random number generators have states of up to 128 bits.
MAX_INTEGER_BITS = 256

# Instructions whose argument is the value.
LITERALS = frozenset(
    "NONE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING "
    "BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8 UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8".split()
)
IGNORED = frozenset(["PROTO", "FRAME"])
PLAIN = frozenset([type(None), bool, int, float, str, bytes, bytearray, torch.dtype, torch.Size, Tensor, nn.Parameter])
DICTS = (dict, OrderedDict, Counter)


class ByteStream(Protocol):
    """What a pickle is read from. `read` must not allocate more than there is to read."""

    def read(self, count: int, /) -> bytes:
        """Up to `count` bytes."""

    def readline(self) -> bytes:
        """The bytes up to the next line feed and with it."""


class StorageSource(Protocol):
    """Finds the content of a tensor's storage."""

    def __call__(self, key: str, nbytes: int, /) -> Tensor:
        """(nbytes,) uint8; raises `DamagedError` if there is no such storage of this size."""


def load_pickle(stream: ByteStream, size: int, find_storage: StorageSource | None = None) -> Any:
    """What the next pickle of a stream holds.

    Args:
        stream: read up to the end of the pickle.
        size: bytes that the pickle has at most.
        find_storage: finds the storages that tensors of the pickle are views of; None if there are no such tensors.

    Returns:
        Tensors, arrays, numbers, strings, bytes, dtypes and None, in dicts, lists, tuples and sets. Dicts and sets have
        strings, bytes, integers or None as keys.

    Raises:
        ForeignObjectError: the pickle needs other classes or functions.
        Exception: whatever goes wrong in a damaged pickle; `DamagedError` where a check of this module notices it.
    """
    value = _Machine(size, find_storage).run(stream)
    check_plain(value)
    return value


class _Machine:
    """Has a method `do_NAME` for each instruction that it knows, by the names of `pickletools`."""

    def __init__(self, size: int, find_storage: StorageSource | None):
        # Content of arrays is copied twice where a pickle has it as text.
        self.budget = Budget(MAX_VALUES, 2 * size)
        self.find_storage = find_storage
        self.stack: list[Any] = []
        self.stacks_below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self, stream: ByteStream) -> Any:
        for count, (instruction, argument, _) in enumerate(pickletools.genops(stream)):  # type: ignore[arg-type]
            if count >= MAX_VALUES:
                raise DamagedError(f"it has over {MAX_VALUES} instructions")
            name = instruction.name
            if name in LITERALS:
                if isinstance(argument, int) and argument.bit_length() > MAX_INTEGER_BITS:
                    raise DamagedError(f"it has an integer of over {MAX_INTEGER_BITS} bits")
                self.stack.append(argument)
            elif name == "STOP":
                break
            elif name not in IGNORED:
                handler = getattr(self, f"do_{name.lower()}", None)
                if handler is None:
                    raise ForeignObjectError(f"an object made by the instruction {name}")
                handler(argument)
        return self.stack.pop()

    def do_mark(self, _: None) -> None:
        self.stacks_below.append(self.stack)
        self.stack = []

    def _since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.stacks_below.pop()
        return items

    def do_pop(self, _: None) -> None:
        self.stack.pop()

    def do_pop_mark(self, _: None) -> None:
        self._since_mark()

    def do_dup(self, _: None) -> None:
        self.stack.append(self.stack[-1])

    def do_put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    do_binput = do_long_binput = do_put

    def do_memoize(self, _: None) -> None:
        self.do_put(len(self.memo))

    def do_get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    do_binget = do_long_binget = do_get

    def do_newtrue(self, _: None) -> None:
        self.stack.append(True)

    def do_newfalse(self, _: None) -> None:
        self.stack.append(False)

    def do_empty_list(self, _: None) -> None:
        self.stack.append([])

    def do_empty_tuple(self, _: None) -> None:
        self.stack.append(())

    def do_empty_dict(self, _: None) -> None:
        self.stack.append({})

    def do_empty_set(self, _: None) -> None:
        self.stack.append(set())

    def do_list(self, _: None) -> None:
        items = self._since_mark()
        self.stack.append(items)

    def do_tuple(self, _: None) -> None:
        items = self._since_mark()
        self.stack.append(tuple(items))

    def do_tuple1(self, _: None) -> None:
        self.stack.append((self.stack.pop(),))

    def do_tuple2(self, _: None) -> None:
        second, first = self.stack.pop(), self.stack.pop()
        self.stack.append((first, second))

    def do_tuple3(self, _: None) -> None:
        third, second, first = self.stack.pop(), self.stack.pop(), self.stack.pop()
        self.stack.append((first, second, third))

    def do_dict(self, _: None) -> None:
        items = self._since_mark()
        self.stack.append({})
        self._set_items(items)

    def do_frozenset(self, _: None) -> None:
        items = self._since_mark()
        self.stack.append(frozenset(map(checked_key, items)))

    def do_append(self, _: None) -> None:
        item = self.stack.pop()
        of_type(self.stack[-1], list).append(item)

    def do_appends(self, _: None) -> None:
        items = self._since_mark()
        of_type(self.stack[-1], list).extend(items)

    def do_additems(self, _: None) -> None:
        items = self._since_mark()
        of_type(self.stack[-1], set).update(map(checked_key, items))

    def do_setitem(self, _: None) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key, value])

    def do_setitems(self, _: None) -> None:
        self._set_items(self._since_mark())

    def _set_items(self, items: list[Any]) -> None:
        target = of_type(self.stack[-1], *DICTS)
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[checked_key(key)] = value

    def do_global(self, name: str) -> None:
        names = known_names()
        if name not in names:
            raise ForeignObjectError(name.replace(" ", "."))
        self.stack.append(names[name])

    def do_stack_global(self, _: None) -> None:
        name, module = of_type(self.stack.pop(), str), of_type(self.stack.pop(), str)
        self.do_global(f"{module} {name}")

    def do_reduce(self, _: None) -> None:
        arguments = of_type(self.stack.pop(), tuple)
        function = of_type(self.stack.pop(), Function)
        self.stack.append(function.call(self.budget, *arguments))

    def do_build(self, _: None) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is np.ndarray:
            fill_array(self.budget, target, *state)
        elif type(target) is ArrayType:
            set_byte_order(target, *state)
        elif type(target) is OrderedDict:
            set_module_versions(self.budget, target, state)
        else:
            raise ForeignObjectError(f"a state for an object of type {type(target).__name__}")

    def do_binpersid(self, _: None) -> None:
        kind, storage_type, key, _location, numel, *view = of_type(self.stack.pop(), tuple)
        if kind != "storage" or any(part is not None for part in view):
            raise ForeignObjectError("a part that is no tensor's storage")
        if self.find_storage is None:
            raise DamagedError("it has tensors without content")
        dtype = of_type(storage_type, StorageType).dtype
        content = self.find_storage(of_type(key, str), natural(numel) * dtype.itemsize)
        self.stack.append(Storage(content, dtype))


def check_plain(value: object) -> None:
    """Check that a value is of what `load_pickle` returns, and may be walked by recursion.

    Raises:
        ForeignObjectError: there is something else in it.
        DamagedError: it is nested too deeply, in itself, or in too many ways.
    """
    count = 0
    unfinished: list[Any] = [iter([value])]
    while unfinished:
        for item in unfinished[-1]:
            count += 1
            if count > MAX_VALUES:
                raise DamagedError(f"it is nested into over {MAX_VALUES} values")
            if type(item) in DICTS:
                unfinished.append(itertools.chain(map(checked_key, item), item.values()))
                break
            if type(item) in (list, tuple):
                unfinished.append(iter(item))
                break
            if type(item) in (set, frozenset):
                unfinished.append(map(checked_key, item))
                break
            numbers = isinstance(item, np.ndarray | np.generic) and item.dtype.kind in "biufc"
            if not numbers and type(item) not in PLAIN:
                raise ForeignObjectError(f"an object of type {type(item).__name__}")
        else:
            unfinished.pop()
        if len(unfinished) > MAX_DEPTH:
            raise DamagedError(f"it is nested over {MAX_DEPTH} levels deep")
