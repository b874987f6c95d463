import os
import pickle

import numpy as np
import pytest
import torch

from sparsercnn.engine.checkpoints.content import as_checkpoint
from sparsercnn.engine.checkpoints.files import UnusableFileError, read_tensors

MODEL = {
    "weight": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "half": torch.rand(3).bfloat16(),
    "number": torch.tensor(3),
    "empty": torch.empty(0, 2),
}


def save_old(path):
    torch.save({"model": MODEL, "iteration": 1}, path, _use_new_zipfile_serialization=False)


def test_files_from_before_pytorch_1_6(tmp_path):
    path = tmp_path / "old.pth"
    save_old(path)
    loaded = read_tensors(str(path))
    assert loaded["iteration"] == 1
    torch.testing.assert_close(loaded["model"], MODEL, rtol=0, atol=0)
    whole = path.read_bytes()
    for changed in (whole[:-1], whole + b"\0", whole[: len(whole) // 2]):
        path.write_bytes(changed)
        with pytest.raises(UnusableFileError, match=f"^{path} is damaged"):
            read_tensors(str(path))


def test_safetensors(tmp_path):
    library = pytest.importorskip("safetensors.torch")
    path = str(tmp_path / "model.safetensors")
    library.save_file(MODEL, path, metadata={"format": "pt"})
    loaded = read_tensors(path)
    assert loaded.keys() == MODEL.keys()
    torch.testing.assert_close({name: loaded[name] for name in MODEL}, MODEL, rtol=0, atol=0)
    checkpoint = as_checkpoint(loaded, path, match_endings=False)
    assert checkpoint["model"].keys() == MODEL.keys()


def test_the_content_and_not_the_name_tells_the_format(tmp_path):
    save_old(tmp_path / "a.safetensors")
    (tmp_path / "b.pth").write_bytes(pickle.dumps({"weight": np.ones(3)}))
    assert read_tensors(str(tmp_path / "a.safetensors"))["iteration"] == 1
    assert read_tensors(str(tmp_path / "b.pth"))["weight"].sum() == 3


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = os.open(tmp_path / "pipe", os.O_RDWR)  # so that opening does not wait
    for path, words in {"": "cannot be read", "gone": "cannot be read", "pipe": "not a file"}.items():
        with pytest.raises(UnusableFileError, match=words):
            read_tensors(str(tmp_path / path))
    os.close(writer)


def test_a_link_that_is_swapped_while_the_file_is_read_changes_nothing(tmp_path, monkeypatch):
    good, bad, link = tmp_path / "good.pth", tmp_path / "bad.pth", tmp_path / "link.pth"
    torch.save(MODEL, good)
    bad.write_bytes(pickle.dumps(os.system))
    link.symlink_to(good)
    whole_status = os.fstat

    def swap(descriptor):
        link.unlink(missing_ok=True)
        link.symlink_to(bad)
        return whole_status(descriptor)

    monkeypatch.setattr(os, "fstat", swap)
    assert read_tensors(str(link)).keys() == MODEL.keys()
    assert os.readlink(link) == str(bad)


def test_conventions_of_model_zoos():
    arrays = {"conv_w": np.ones((2, 1), ">f4"), "conv_w_momentum": np.zeros(1)}
    caffe2 = as_checkpoint({"blobs": arrays}, "R-50.pkl", False)
    assert list(caffe2["model"]) == ["conv_w"] and caffe2["__author__"] == "Caffe2" and caffe2["matching_heuristics"]
    assert torch.equal(caffe2["model"]["conv_w"], torch.ones(2, 1))
    pycls = as_checkpoint(
        {"model_state": {"a": torch.ones(1), "bn.num_batches_tracked": torch.tensor(1)}}, "a.pyth", False
    )
    assert list(pycls["model"]) == ["a"] and pycls["matching_heuristics"]
    zoo = {"model": {"a": np.ones(1)}, "__author__": "somebody"}
    assert as_checkpoint(zoo, "zoo.pkl", False) is zoo
    bare = as_checkpoint({"a": torch.ones(1)}, "bare.pth", match_endings=True)
    assert list(bare["model"]) == ["a"] and bare["matching_heuristics"] is True


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ([torch.ones(1)], "list"),
        (torch.ones(1), "Tensor"),
        ("model", "str"),
        ({}, "empty dict"),
        ({"model": {}}, "empty dict"),
        ({"model": None}, "NoneType"),
        ({"model": [torch.ones(1)]}, "list"),
        ({"model": {"weight": 1.5}}, "'weight' is a float"),
        ({"model": {3: torch.ones(1)}}, "3"),
        ({"state_dict": {"a": torch.ones(1)}, "epoch": 3}, "'state_dict' is a dict.*'epoch'"),
        ({"model": {"\n" * 1000: 1}}, r"\\n"),
        ({"model": {"a\nb": torch.ones(1)}}, r"a\\nb"),
        ({"model": {"a" * 1000: torch.ones(1)}}, "aaa"),
    ],
)
@pytest.mark.parametrize("name", ["model.pth", "model.pkl", "model.pyth"])
def test_content_that_is_no_model_is_one_line(content, word, name):
    if name != "model.pth":
        word = ""
    with pytest.raises(UnusableFileError, match=f"^{name} .*{word}") as raised:
        as_checkpoint(content, name, False)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 500
