import io
import pickle
import re
from collections import Counter, OrderedDict

import numpy as np
import pytest
import torch

from sparsercnn.engine.checkpoints.pickled_objects import DamagedError, ForeignObjectError
from sparsercnn.engine.checkpoints.safe_pickle import MAX_DEPTH, check_plain, load_pickle

PLAIN = {
    "none": None,
    "bools": [True, False],
    "integers": [0, -1, 255, 256, 65536, -(2**31), 2**62, 2**100],
    "floats": [1.5, float("inf")],
    "texts": ["", "a", "\u00e4\U0001f600", "x" * 300],
    "bytes": [b"", b"\xff\x00", b"y" * 300],
    "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
    "sets": [set(), {1, 2}, frozenset(["a"])],
    "ordered": OrderedDict(b=1, a=[2]),
    "counter": Counter({3: 2}),
    "dtype": torch.float32,
    "size": torch.Size([2, 3]),
    7: {None: b"key"},
}


def load(content, **options):
    pickled = pickle.dumps(content, **options)
    return load_pickle(io.BytesIO(pickled), len(pickled))


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_come_back(protocol):
    content = {**PLAIN, "shared": PLAIN["texts"]}
    if protocol < 2:  # for which old Pythons had no instructions
        content = {key: content[key] for key in ("none", "integers", "floats", "texts", "tuples", "shared")}
    loaded = load(content, protocol=protocol)
    assert loaded == content and list(loaded) == list(content)
    for mine, theirs in zip(loaded.values(), content.values(), strict=True):
        assert type(mine) is type(theirs)
    assert loaded["shared"] is loaded["texts"]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_come_back(protocol):
    arrays = {
        kind: np.arange(6).reshape(2, 3).astype(kind) for kind in ("?", "u1", "i2", "<i4", ">i8", "f2", "f8", "c8")
    }
    arrays |= {"fortran": np.asfortranarray(np.random.rand(3, 4)), "scalar": np.array(3.5), "empty": np.zeros((0, 3))}
    loaded = load(arrays, protocol=protocol)
    expected = pickle.loads(pickle.dumps(arrays, protocol=protocol))
    for name, array in expected.items():
        assert loaded[name].dtype == array.dtype and loaded[name].strides == array.strides
        np.testing.assert_array_equal(loaded[name], array)
    numbers = [np.float64(2.5), np.int32(-7), np.bool_(True)]
    assert load(numbers, protocol=protocol) == numbers


def test_arrays_of_python_2():
    """There content is text, in Latin-1."""
    pickled = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nq\x00cnumpy\nndarray\nq\x01K\x00\x85q\x02U\x01bq\x03\x87q\x04Rq"
        b"\x05(K\x01K\x02\x85q\x06cnumpy\ndtype\nq\x07U\x02f4q\x08K\x00K\x01\x87q\x09Rq\x0a(K\x03U\x01<q\x0bNNNJ\xff\xff"
        b"\xff\xffJ\xff\xff\xff\xffK\x00tq\x0cb\x89U\x08\x00\x00\x80?\x00\x00\x00\xc0q\x0dtq\x0eb."
    )
    np.testing.assert_array_equal(load_pickle(io.BytesIO(pickled), len(pickled)), np.float32([1, -2]))


def test_what_is_loaded_may_be_saved_and_the_rest_not():
    check_plain(load(PLAIN))
    for value in (object(), {1.5: 0}, np.array(["a"]), torch.__version__, PLAIN.keys(), {(1, 2): 0}):
        with pytest.raises((ForeignObjectError, DamagedError)):
            check_plain(value)


def test_nesting_is_limited():
    nested: list = []
    for _ in range(MAX_DEPTH - 2):
        nested = [nested]
    assert load(nested) == nested
    with pytest.raises(DamagedError, match="nested"):
        load([[nested]])
    nested.append(nested)
    with pytest.raises(DamagedError, match="nested"):
        load(nested)


def test_names_of_foreign_objects_are_told():
    with pytest.raises(ForeignObjectError, match=rf"^{re.escape(__name__)}\.load$"):
        load(load)
