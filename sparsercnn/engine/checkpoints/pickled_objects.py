"""The tensors, arrays and containers that pickles of checkpoints make, and how: checked, bounded, without their code.

A pickle names functions of PyTorch, NumPy and Python and gives their arguments. `known_names` has a stand-in for each
function that makes data; there is nothing else that a name could mean.
"""

import functools
import math
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Values that one pickle may make. A checkpoint has some fifty for each tensor. With the largest that an instruction can
# make, two million take half a gigabyte.
MAX_VALUES = 2_000_000

STORAGE_TYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}
ARRAY_TYPES = frozenset("b1 i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8 c8 c16".split())
BYTE_ORDERS = ("<", ">", "|", "=")
# NumPy's limit was 32 dimensions; networks have five.
MAX_DIMENSIONS = 32


class DamagedError(ValueError):
    """The content of a file is not what its format demands."""


class ForeignObjectError(ValueError):
    """A file needs a class or function that is none of those which make data; the message names it."""


@dataclass(frozen=True)
class Function:
    """Stands in for a function that pickles name. It is called with a `Budget` and the arguments in the pickle."""

    call: Callable[..., Any]


@dataclass(frozen=True)
class StorageType:
    """PyTorch's class for storages with elements of this dtype."""

    dtype: torch.dtype


@dataclass(frozen=True)
class Storage:
    """A tensor's storage: its bytes, (N,) uint8, and the dtype of its elements."""

    content: Tensor
    dtype: torch.dtype


@dataclass
class ArrayType:
    """A NumPy dtype, which a pickle makes first from its name and then gives its byte order."""

    dtype: np.dtype


NDARRAY = object()
"""NumPy's class of arrays, which is an argument in pickles."""


@dataclass
class Budget:
    """Limits what calls may copy: a pickle can pass the same container or string to any number of them.

    Attributes:
        items: left to copy, of containers.
        size: bytes left to copy, of strings and contents of arrays.
    """

    items: int
    size: int

    def charge(self, copied: Any) -> None:
        """Subtract what a container, string or content has."""
        if isinstance(copied, str | bytes | bytearray):
            self.size -= len(copied)
        else:
            self.items -= len(copied)
        if min(self.items, self.size) < 0:
            raise DamagedError("it copies what it holds over and over")


def of_type(value: Any, *types: type) -> Any:
    """The value, which is of one of these types (not of a subclass)."""
    if type(value) not in types:
        raise ForeignObjectError(f"{type(value).__name__} where {types[0].__name__} is expected")
    return value


def natural(value: object) -> int:
    """The value, which is an integer from 0 to 2^63 - 1."""
    if type(value) is not int or not 0 <= value < 2**63:
        raise DamagedError("a size is no natural number")
    return value


def checked_key(key: Any) -> Any:
    """The key of a dict or set, whose hash cannot have been chosen to collide with a million others."""
    if not (key is None or isinstance(key, str | bytes) or (isinstance(key, int) and abs(key) < 2**63)):
        raise DamagedError(f"a key of a dict or set is of type {type(key).__name__}")
    return key


@functools.cache
def known_names() -> dict[str, Any]:
    """What "module name" in a pickle stands for: a `Function`, or a value."""
    functions: dict[str, Callable[..., Any]] = {
        "collections OrderedDict": _ordered_dict,
        "collections Counter": _counter,
        "_codecs encode": _encode,
        "torch Size": _size,
        "torch._utils _rebuild_tensor": _tensor,
        "torch._utils _rebuild_tensor_v2": _tensor,
        "torch._utils _rebuild_tensor_v3": _tensor_of_dtype,
        "torch._utils _rebuild_parameter": _parameter,
        "numpy dtype": _array_type,
    }
    for module in ("builtins", "__builtin__"):  # of Python 3 and 2
        functions |= {f"{module} set": _set, f"{module} frozenset": _frozenset, f"{module} bytes": _no_bytes}
    for module in ("numpy.core", "numpy._core"):  # of NumPy 1 and 2
        functions[f"{module}.multiarray _reconstruct"] = _empty_array
        functions[f"{module}.multiarray scalar"] = _number
        functions[f"{module}.numeric _frombuffer"] = _array_of_buffer
    names: dict[str, Any] = {name: Function(call) for name, call in functions.items()}
    names |= {f"torch {name}": StorageType(dtype) for name, dtype in STORAGE_TYPES.items()}
    names["torch.storage UntypedStorage"] = StorageType(torch.uint8)
    names |= {str(dtype).replace(".", " "): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}
    names["numpy ndarray"] = NDARRAY
    return names


def _ordered_dict(budget: Budget, pairs: Any = ()) -> OrderedDict:
    budget.charge(of_type(pairs, tuple, list))
    return OrderedDict((checked_key(key), value) for key, value in pairs)


def _counter(budget: Budget, counts: dict) -> Counter:
    budget.charge(of_type(counts, dict))
    return Counter(counts)


def _set(budget: Budget, items: list) -> set:
    budget.charge(of_type(items, list, tuple))
    return set(map(checked_key, items))


def _frozenset(budget: Budget, items: list) -> frozenset:
    return frozenset(_set(budget, items))


def _size(budget: Budget, sizes: tuple) -> torch.Size:
    budget.charge(of_type(sizes, tuple))
    return torch.Size(map(natural, sizes))


def _no_bytes(budget: Budget) -> bytes:
    return b""


def _encode(budget: Budget, text: str, encoding: str) -> bytes:
    # How pickles that Python 2 can read hold bytes; other encodings may take time that grows with the square.
    if encoding not in ("latin1", "latin-1"):
        raise ForeignObjectError("text in an encoding other than Latin-1")
    budget.charge(of_type(text, str))
    return text.encode("latin1")


def _tensor(
    budget: Budget,
    storage: Storage,
    offset: int,
    sizes: tuple,
    strides: tuple,
    requires_grad: object = False,
    hooks: object = None,
    flags: object = None,
) -> Tensor:
    """A view of a storage; offset and strides are in elements."""
    if flags:
        raise ForeignObjectError("a tensor that is a conjugate or negative view")
    dtype = of_type(storage, Storage).dtype
    check_dimensions(sizes)
    dimensions = [(natural(n), natural(stride)) for n, stride in zip(sizes, strides, strict=True)]
    numel = math.prod(n for n, _ in dimensions)
    end = natural(offset) + (1 + sum((n - 1) * stride for n, stride in dimensions) if numel else 0)
    # More elements than the storage has would be a small file that becomes a large tensor.
    if max(numel, end) > len(storage.content) // dtype.itemsize:
        raise DamagedError("a tensor reaches beyond its storage")
    empty = torch.empty(0, dtype=dtype)
    return empty.set_(storage.content.untyped_storage(), offset, sizes, strides)


def check_dimensions(sizes: tuple | list) -> None:
    """Raise `DamagedError` if a shape has more dimensions than any tensor."""
    if len(of_type(sizes, tuple, list, torch.Size)) > MAX_DIMENSIONS:
        raise DamagedError(f"it has something of {len(sizes)} dimensions")


def _tensor_of_dtype(
    budget: Budget,
    storage: Storage,
    offset: int,
    sizes: tuple,
    strides: tuple,
    requires_grad: object,
    hooks: object,
    dtype: torch.dtype,
    flags: object = None,
) -> Tensor:
    typed = Storage(of_type(storage, Storage).content, of_type(dtype, torch.dtype))
    return _tensor(budget, typed, offset, sizes, strides, flags=flags)


def _parameter(budget: Budget, tensor: Tensor, requires_grad: object, hooks: object) -> Tensor:
    return of_type(tensor, Tensor)


def _array_type(budget: Budget, name: str, align: object = False, copy: object = False) -> ArrayType:
    if of_type(name, str).lstrip("<>|=") not in ARRAY_TYPES:
        raise ForeignObjectError("an array of something other than numbers")
    return ArrayType(np.dtype(name))


def set_byte_order(target: ArrayType, version: int, order: str, *rest: Any) -> None:
    """Give a NumPy dtype the state in a pickle.

    Raises:
        ForeignObjectError: it is one of records or subarrays.
    """
    # The rest is subarray, names, fields, and what types that are none of numbers have.
    if any(part is not None for part in rest[:3]) or order not in BYTE_ORDERS:
        raise ForeignObjectError("an array of something other than numbers")
    target.dtype = target.dtype.newbyteorder(order)  # type: ignore[arg-type]


def _empty_array(budget: Budget, kind: object, shape: object, typecode: object) -> np.ndarray:
    # What the array is follows in an instruction that calls `fill_array`.
    if kind is not NDARRAY:
        raise ForeignObjectError("an array of a class of its own")
    return np.empty(0)


def fill_array(
    budget: Budget, target: np.ndarray, version: int, shape: tuple, kind: ArrayType, fortran: object, content: Any
) -> None:
    """Make of an array, in place, what the state in a pickle says.

    Raises:
        DamagedError: the content is not as large as the array.
    """
    dtype, content = _layout(budget, kind, shape, content)
    target.__setstate__((1, shape, dtype, bool(fortran), content))  # type: ignore[arg-type]


def _array_of_buffer(budget: Budget, content: Any, kind: ArrayType, shape: tuple, order: str) -> np.ndarray:
    dtype, content = _layout(budget, kind, shape, content)
    return np.frombuffer(content, dtype).reshape(shape, order=order)  # type: ignore[call-overload]


def _number(budget: Budget, kind: ArrayType, content: Any) -> np.generic:
    dtype, content = _layout(budget, kind, (), content)
    return np.frombuffer(content, dtype)[0]


def _layout(budget: Budget, kind: ArrayType, shape: tuple, content: Any) -> tuple[np.dtype, bytes]:
    """Dtype and content of an array, which Python 2 wrote as a string."""
    dtype = of_type(kind, ArrayType).dtype
    if isinstance(content, str):
        content = _encode(budget, content, "latin1")
    budget.charge(of_type(content, bytes, bytearray))
    check_dimensions(shape)
    size = math.prod(map(natural, shape)) * dtype.itemsize
    if size != len(content):
        raise DamagedError("an array has another size than its content")
    return dtype, content


def set_module_versions(budget: Budget, target: OrderedDict, state: dict) -> None:
    """Give a state dict, in place, the versions of the modules that wrote it, which a pickle has as `_metadata`."""
    modules = of_type(of_type(state, dict).get("_metadata", {}), dict, OrderedDict)
    budget.charge(modules)
    metadata = OrderedDict()
    for name, entry in modules.items():
        if (version := entry.get("version")) is not None:
            metadata[of_type(name, str)] = {"version": natural(version)}
    target._metadata = metadata  # type: ignore[attr-defined]
