"""Pickles that a reader of checkpoints must refuse: each runs code, takes memory, or takes time.

Those that run code would make the file whose path they are given.
"""

import copyreg
import functools
import pickle
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

PROTOCOL = b"\x80\x02"
GIANT = (1 << 40).to_bytes(8, "little")


Build = Callable[[Path], bytes]
PICKLES: dict[str, Build] = {}
"""Makes each pickle from the path of the file that it would make."""


def hostile(build: Build) -> Build:
    """Register a function that makes a pickle."""
    PICKLES[build.__name__] = build
    return build


class Call:
    """Pickles as a call."""

    def __init__(self, function: Callable, *arguments: object):
        self.parts = function, arguments

    def __reduce__(self) -> tuple:
        return self.parts


def call(module: str, name: str, *arguments: object) -> bytes:
    """A pickle that calls MODULE.NAME, which need not exist here."""
    pickled = pickle.dumps(arguments, protocol=2)[2:-1]
    return PROTOCOL + f"c{module}\n{name}\n".encode() + pickled + b"R."


def text(value: str) -> bytes:
    """The instruction that pushes a string."""
    return b"X" + len(value.encode()).to_bytes(4, "little") + value.encode()


def global_by_stack(module: str, name: str) -> bytes:
    return text(module) + text(name) + b"\x93"


def shell(evidence: Path) -> str:
    return f"touch {evidence}"


@hostile
def system(evidence: Path) -> bytes:
    return call("os", "system", shell(evidence))


@hostile
def system_of_python_2(evidence: Path) -> bytes:
    return call("__builtin__", "execfile", str(evidence))


@hostile
def eval_by_stack_global(evidence: Path) -> bytes:
    code = f"open({str(evidence)!r}, 'w')"
    return b"\x80\x04" + global_by_stack("builtins", "eval") + text(code) + b"\x85R."


@hostile
def getattr_chain(evidence: Path) -> bytes:
    return call("builtins", "getattr", "x", "__class__")


@hostile
def instance(evidence: Path) -> bytes:
    return b"(" + text(shell(evidence)) + b"iposix\nsystem\n."


@hostile
def instance_of_object(evidence: Path) -> bytes:
    return b"(cposix\nsystem\n" + text(shell(evidence)) + b"o."


@hostile
def new_object(evidence: Path) -> bytes:
    return PROTOCOL + b"csubprocess\nPopen\n" + text(shell(evidence)) + b"\x85\x81."


@hostile
def new_object_with_keywords(evidence: Path) -> bytes:
    return b"\x80\x04" + global_by_stack("subprocess", "Popen") + text(shell(evidence)) + b"\x85}\x92."


@hostile
def extension_code(evidence: Path) -> bytes:
    copyreg.add_extension("subprocess", "Popen", 240)
    try:
        return pickle.dumps(Call(subprocess.Popen, ["touch", str(evidence)]), protocol=2)
    finally:
        copyreg.remove_extension("subprocess", "Popen", 240)


@hostile
def reconstructor(evidence: Path) -> bytes:
    return pickle.dumps(Call(copyreg._reconstructor, subprocess.CompletedProcess, object, None), protocol=2)


@hostile
def partial(evidence: Path) -> bytes:
    return pickle.dumps(functools.partial(subprocess.run, shell(evidence), shell=True))


@hostile
def method_caller(evidence: Path) -> bytes:
    return call("operator", "methodcaller", "mkdir", str(evidence))


@hostile
def state_of_a_module(evidence: Path) -> bytes:
    return PROTOCOL + b"ctorch.nn.modules.linear\nIdentity\n)\x81}" + text("training") + b"\x88sb."


@hostile
def state_of_a_function(evidence: Path) -> bytes:
    return PROTOCOL + b"ccollections\nOrderedDict\n)R}" + text("__call__") + b"\x88sb."


@hostile
def whole_module(evidence: Path) -> bytes:
    return pickle.dumps(torch.nn.Identity())


@hostile
def persistent_id_in_text(evidence: Path) -> bytes:
    return b"Pstorage\n."


@hostile
def persistent_id_of_a_module(evidence: Path) -> bytes:
    return PROTOCOL + b"(" + text("module") + b"cos\nsystem\n" + text("source") + b"NtQ."


@hostile
def persistent_id_of_a_number(evidence: Path) -> bytes:
    return PROTOCOL + b"K\x05Q."


@hostile
def array_of_objects(evidence: Path) -> bytes:
    array = np.empty(1, dtype=object)
    array[0] = Call(subprocess.run, ["touch", str(evidence)])
    return pickle.dumps({"model": {"weight": array}})


@hostile
def array_of_records(evidence: Path) -> bytes:
    return pickle.dumps({"model": {"weight": np.zeros(2, dtype=[("a", "f4"), ("b", "O")])}})


@hostile
def array_type_with_metadata(evidence: Path) -> bytes:
    return pickle.dumps({"model": {"weight": np.zeros(2, np.dtype("V4", metadata={"a": 1}))}})


@hostile
def number_of_an_object_type(evidence: Path) -> bytes:
    return PROTOCOL + b"cnumpy.core.multiarray\nscalar\n" + b"cnumpy\ndtype\n" + text("O8") + b"\x85R" + b"N\x86R."


def long_integer(value: int) -> bytes:
    """The instruction that pushes an integer."""
    return b"\x8a\x09" + value.to_bytes(9, "little")


def array(shape: bytes, content: bytes = b"U\x04abcd") -> bytes:
    """An array of float32 with a shape and a content."""
    made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    kind = b"cnumpy\ndtype\n" + text("f4") + b"\x85R"
    return PROTOCOL + made + b"(K\x01" + shape + kind + b"\x89" + content + b"tb."


@hostile
def array_larger_than_its_content(evidence: Path) -> bytes:
    return array(b"\x8a\x05\x00\x00\x00\x00\x01\x85")


@hostile
def arrays_of_one_content(evidence: Path) -> bytes:
    """A thousand arrays of ten megabytes that are one in the file."""
    content = b"B" + (10_000_000).to_bytes(4, "little") + bytes(10_000_000) + b"q\x00"
    whole = array(long_integer(2_500_000) + b"\x85", content)[2:-1]
    again = array(long_integer(2_500_000) + b"\x85", b"h\x00")[2:-1]
    named = b"".join(text(str(i)) + again for i in range(1000))
    return PROTOCOL + b"}" + text("model") + b"}(" + text("a") + whole + named + b"us."


@hostile
def array_of_many_dimensions(evidence: Path) -> bytes:
    return array(b"(" + b"K\x01" * 1000 + b"t")


@hostile
def memory_mapped_array(evidence: Path) -> bytes:
    return call("numpy", "memmap", str(evidence), "f4", "w+", 0, (1 << 33,))


@hostile
def encoding_that_expands(evidence: Path) -> bytes:
    return call("_codecs", "encode", "a" * 100_000, "idna")


@hostile
def decoding(evidence: Path) -> bytes:
    return call("_codecs", "decode", b"x\x9c", "zip")


for module, name in [("builtins", "bytearray"), ("torch", "FloatTensor"), ("torch", "empty"), ("numpy", "zeros")]:
    PICKLES[f"giant_{name}"] = functools.partial(lambda path, evidence: call(*path, 1 << 37), (module, name))

for name, instruction in {"unicode": b"\x8d", "bytes": b"\x8e", "bytearray": b"\x96", "frame": b"\x95"}.items():
    PICKLES[f"giant_{name}_instruction"] = functools.partial(
        lambda instruction, evidence: b"\x80\x05" + instruction + GIANT + b"abc.", instruction
    )


@hostile
def giant_integer(evidence: Path) -> bytes:
    return PROTOCOL + b"\x8b" + (1 << 30).to_bytes(4, "little") + b"\x01."


@hostile
def integer_of_many_digits(evidence: Path) -> bytes:
    return b"L" + b"9" * 200_000 + b"L\n."


@hostile
def memo_index(evidence: Path) -> bytes:
    return PROTOCOL + b"]r\xff\xff\xff\xff."


@hostile
def deep_lists(evidence: Path) -> bytes:
    return PROTOCOL + b"]" * 100_000 + b"a" * 99_999 + b"."


@hostile
def deep_tuples(evidence: Path) -> bytes:
    return PROTOCOL + b"N" + b"\x85" * 500_000 + b"."


@hostile
def laughs(evidence: Path) -> bytes:
    """Ten of ten of ten …: a small file, a tree of 10^40 values."""
    levels = [b"(" + (b"h" + bytes([i])) * 10 + b"tq" + bytes([i + 1]) for i in range(40)]
    return PROTOCOL + b"K\x01q\x00" + b"".join(level + b"0" for level in levels) + b"h\x28."


@hostile
def list_in_itself(evidence: Path) -> bytes:
    return PROTOCOL + b"]q\x00h\x00a."


@hostile
def copies(evidence: Path) -> bytes:
    """One list of 100,000 strings, and 100,000 sets of them."""
    strings = b"".join(text(str(i)) for i in range(100_000))
    start = b"](" + strings + b"eq\x00" + b"c__builtin__\nset\nq\x01"
    return PROTOCOL + b"(" + start + b"h\x01h\x00\x85R" * 100_000 + b"t."


@hostile
def copies_of_text(evidence: Path) -> bytes:
    start = text("a" * 1_000_000) + b"q\x00c_codecs\nencode\nq\x01" + text("latin1") + b"q\x02"
    return PROTOCOL + b"(" + start + b"h\x01h\x00h\x02\x86R" * 10_000 + b"t."


@hostile
def colliding_keys(evidence: Path) -> bytes:
    """Integers of one hash, which make a dict as slow as a list."""
    keys = [(i << 61) - i for i in range(1, 30_000)]
    return pickle.dumps({"model": dict.fromkeys(keys)}, protocol=2)


@hostile
def many_sets(evidence: Path) -> bytes:
    return PROTOCOL + b"(" + b"\x8f" * 5_000_000 + b"t."


@hostile
def without_end(evidence: Path) -> bytes:
    return PROTOCOL + b"]" * 1000


@hostile
def stack_that_is_empty(evidence: Path) -> bytes:
    return PROTOCOL + b"0000R."


@hostile
def text_file(evidence: Path) -> bytes:
    return b"import os\nos.system('true')\n"
