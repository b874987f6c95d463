import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from sparsercnn.engine import SparseRCNNCheckpointer
from sparsercnn.errors import InputError

DEPTH = 6
OTHER_FILES = [
    b"",
    b"\0" * 1000,
    b"not a checkpoint",
    b"{}",
    b"<html>",
    b"\x89PNG\r\n\x1a\n" * 9,
    b"PK\x03\x04",
    b"\x80",
    b"cos",
]


def detector(num_classes=3, width=4, levels=DEPTH):
    """Modules with the names of the real detector."""
    blocks = [(f"res{i}", nn.Linear(width, width)) for i in range(levels)]
    bottom_up = nn.Sequential(OrderedDict(blocks))
    stage = nn.ModuleDict({"linear1": nn.Linear(width, 2), "class_logits": nn.Linear(2, num_classes)})
    head = nn.ModuleDict({"head_series": nn.ModuleList([stage])})
    return nn.ModuleDict({"backbone": nn.ModuleDict({"bottom_up": bottom_up}), "head": head})


def load(model, path):
    return SparseRCNNCheckpointer(model).load(str(path))


def save(model, folder, name="model", **kwargs):
    SparseRCNNCheckpointer(model, str(folder)).save(name, **kwargs)
    return folder / f"{name}.pth"


def test_round_trip_with_extra_data(tmp_path):
    model, other = detector(), detector()
    path = save(model, tmp_path, iteration=7, best=np.float64(1.5))
    extra = load(other, path)
    assert extra["iteration"] == 7 and extra["best"] == 1.5
    torch.testing.assert_close(other.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert SparseRCNNCheckpointer(model, str(tmp_path)).get_checkpoint_file() == str(path)


def test_class_layers_of_another_size_start_afresh(tmp_path, caplog):
    model, other = detector(num_classes=80), detector(num_classes=3)
    initial = other["head"]["head_series"][0]["class_logits"].weight.detach().clone()
    load(other, save(model, tmp_path))
    assert torch.equal(other["head"]["head_series"][0]["class_logits"].weight, initial)
    assert torch.equal(other["backbone"]["bottom_up"].res0.weight, model["backbone"]["bottom_up"].res0.weight)
    assert "class_logits.weight" in caplog.text


@pytest.mark.parametrize("other", [{"width": 8}, {"levels": DEPTH + 2}, {"levels": DEPTH - 2}])
def test_checkpoint_of_another_architecture_lists_what_does_not_fit(tmp_path, other):
    path = save(detector(**other), tmp_path)
    with pytest.raises(InputError, match="another architecture") as raised:
        load(detector(), path)
    first, *names = str(raised.value).splitlines()
    assert str(path) in first and 1 <= len(names) <= 11
    assert all("backbone.bottom_up.res" in name or "linear1" in name or "more" in name for name in names)


def backbone_file(folder, model):
    path = folder / "backbone.pth"
    torch.save({"model": {k: v for k, v in model.state_dict().items() if k.startswith("backbone")}}, path)
    return path


def test_backbone_alone_loads(tmp_path):
    model, other = detector(), detector()
    load(other, backbone_file(tmp_path, model))
    assert torch.equal(other["backbone"]["bottom_up"].res0.weight, model["backbone"]["bottom_up"].res0.weight)


@pytest.mark.parametrize("other", [{"width": 8}, {"levels": 2 * DEPTH}, {"levels": DEPTH // 2}])
def test_backbone_of_another_architecture_is_refused(tmp_path, other):
    with pytest.raises(InputError, match=r"another architecture.*\n.*backbone.bottom_up.res"):
        load(detector(), backbone_file(tmp_path, detector(**other)))


def test_truncated_file_is_named(tmp_path):
    path = save(detector(), tmp_path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=f"{path}.*damaged"):
        load(detector(), path)


@pytest.mark.parametrize("suffix", ["pth", "pkl"])
@pytest.mark.parametrize("content", OTHER_FILES)
def test_other_files_are_named(tmp_path, suffix, content):
    path = tmp_path / f"model.{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"{path}.*damaged"):
        load(detector(), path)


class Payload:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("suffix", ["pth", "pkl"])
def test_code_in_a_file_does_not_run(tmp_path, suffix):
    path, evidence = tmp_path / f"model.{suffix}", tmp_path / "evidence"
    content = {"model": {}, "extra": Payload(str(evidence))}
    if suffix == "pth":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(InputError, match=f"{path}.*refused"):
        load(detector(), path)
    assert not evidence.exists()


@pytest.mark.parametrize("protocol", [2, 4])
def test_model_zoo_pickles_load(tmp_path, protocol):
    model, other = detector(), detector()
    arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    path = tmp_path / "zoo.pkl"
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "somebody"}, protocol=protocol))
    load(other, path)
    torch.testing.assert_close(other.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_a_save_that_dies_leaves_the_last_checkpoint_whole(tmp_path, monkeypatch):
    model = detector()
    path = save(model, tmp_path)
    before = path.read_bytes()

    def die_halfway(data, file):
        file.write(before[: len(before) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", die_halfway)
    for name in ("model", "model_next"):
        with pytest.raises(KeyboardInterrupt):
            save(model, tmp_path, name)
    checkpointer = SparseRCNNCheckpointer(model, str(tmp_path))
    assert checkpointer.get_checkpoint_file() == str(path)
    assert path.read_bytes() == before
    assert checkpointer.get_all_checkpoint_files() == [str(path)]


def test_an_unknown_query_is_named(tmp_path):
    with pytest.raises(InputError, match="matching_heuristics=True, not speed"):
        load(detector(), f"{save(detector(), tmp_path)}?speed=fast&matching_heuristics=True")
