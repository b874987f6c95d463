"""Saving, resuming, and loading the formats of model zoos."""

import logging
import pickle
import re

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer, PeriodicCheckpointer
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts, convert_basic_c2_names
from torch import nn


class Detector(nn.Module):
    """Names like those of a detector's, small enough to check by eye."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.stem = nn.Linear(2, 3)
        self.backbone.res2 = nn.ModuleList([nn.Linear(3, 3)])
        self.head = nn.Linear(3, 2)
        self.register_buffer("pixel_mean", torch.zeros(3))


@pytest.fixture
def model():
    return Detector()


@pytest.fixture
def warnings(caplog):
    """Text of the warnings of checkpoint loading, without colors."""
    loggers = [logging.getLogger(name) for name in ("detectron2", "fvcore")]
    for logger in loggers:
        logger.addHandler(caplog.handler)
    yield lambda: re.sub(
        r"\x1b\[\d+m", "", "\n".join(r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING)
    )
    for logger in loggers:
        logger.removeHandler(caplog.handler)


def random_weights(*names):
    return {name: torch.rand(size) for name, size in names}


BACKBONE = (("stem.weight", (3, 2)), ("stem.bias", (3,)), ("res2.0.weight", (3, 3)), ("res2.0.bias", (3,)))


def test_save_resume_and_extra_state(tmp_path, model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sum(p.sum() for p in model.parameters()).backward()
    optimizer.step()
    saver = DetectionCheckpointer(model, str(tmp_path), optimizer=optimizer)
    assert not saver.has_checkpoint()
    saver.save("model_x", iteration=7, note="x")
    assert saver.get_checkpoint_file() == str(tmp_path / "model_x.pth")

    other = Detector()
    other_optimizer = torch.optim.SGD(other.parameters(), lr=9.0, momentum=0.9)
    loader = DetectionCheckpointer(other, str(tmp_path), optimizer=other_optimizer)
    rest = loader.resume_or_load("not looked at", resume=True)
    assert rest["iteration"] == 7 and rest["note"] == "x"
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))
    assert other_optimizer.param_groups[0]["lr"] == 0.1
    assert len(other_optimizer.state) == len(optimizer.state) > 0


def test_load_without_resume_takes_weights_only(tmp_path, model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    DetectionCheckpointer(model, str(tmp_path), optimizer=optimizer).save("a")
    other = Detector()
    fresh = torch.optim.SGD(other.parameters(), lr=9.0)
    loader = DetectionCheckpointer(other, str(tmp_path / "new"), optimizer=fresh)
    loader.resume_or_load(str(tmp_path / "a.pth"), resume=True)  # nothing to resume in the new folder
    assert torch.equal(other.head.weight, model.head.weight)
    assert fresh.param_groups[0]["lr"] == 9.0


def test_no_path_is_training_from_scratch(model):
    assert DetectionCheckpointer(model).load("") == {}


def test_missing_file(tmp_path, model):
    with pytest.raises((AssertionError, OSError), match="none.pth"):
        DetectionCheckpointer(model).load(str(tmp_path / "none.pth"))


def test_bare_state_dict(tmp_path, model):
    torch.save(model.state_dict(), tmp_path / "bare.pth")
    other = Detector()
    DetectionCheckpointer(other).load(str(tmp_path / "bare.pth"))
    assert torch.equal(other.head.weight, model.head.weight)


def test_what_did_not_fit_is_reported(tmp_path, model, warnings):
    weights = model.state_dict()
    del weights["backbone.stem.bias"]
    del weights["pixel_mean"]  # comes from the config: not worth a word
    weights["head.weight"] = torch.rand(80, 3)
    weights["mask_head.weight"] = torch.rand(1)
    torch.save({"model": weights}, tmp_path / "other.pth")
    DetectionCheckpointer(Detector()).load(str(tmp_path / "other.pth"))
    text = warnings()
    assert "head.weight" in text and "(80, 3)" in text and "(2, 3)" in text
    assert "backbone.stem.bias" in text and "mask_head.weight" in text
    assert "pixel_mean" not in text


def test_matching_by_query(tmp_path, model):
    weights = random_weights(*BACKBONE)
    torch.save({"model": weights}, tmp_path / "r.pth")
    before = model.backbone.stem.weight.clone()
    DetectionCheckpointer(model).load(str(tmp_path / "r.pth"))
    assert torch.equal(model.backbone.stem.weight, before)
    DetectionCheckpointer(model).load(str(tmp_path / "r.pth") + "?matching_heuristics=True")
    assert torch.equal(model.backbone.stem.weight, weights["stem.weight"])
    assert torch.equal(model.backbone.res2[0].bias, weights["res2.0.bias"])
    with pytest.raises(ValueError, match="(?i)query"):
        DetectionCheckpointer(model).load(str(tmp_path / "r.pth") + "?speed=fast")


def test_pickled_backbone_with_heuristics(tmp_path, model):
    """The format of the ImageNet models that were converted from torchvision."""
    weights = {name: value.numpy() for name, value in random_weights(*BACKBONE).items()}
    data = {"model": weights, "__author__": "torchvision", "matching_heuristics": True}
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps(data))
    DetectionCheckpointer(model).load(str(tmp_path / "R-50.pkl"))
    assert np.array_equal(model.backbone.stem.weight.detach().numpy(), weights["stem.weight"])


def test_pickled_detector_with_full_names(tmp_path, model):
    """The format of the detectron2 model zoo."""
    weights = {name: torch.rand_like(value).numpy() for name, value in model.state_dict().items()}
    (tmp_path / "final.pkl").write_bytes(pickle.dumps({"model": weights, "__author__": "Detectron2 Model Zoo"}))
    DetectionCheckpointer(model).load(str(tmp_path / "final.pkl"))
    assert all(np.array_equal(value.numpy(), weights[name]) for name, value in model.state_dict().items())


def test_caffe2_pickle(tmp_path):
    """The format of the original ImageNet models, with Caffe2's names and bare weights."""
    model = nn.Module()
    model.backbone = nn.Module()
    model.backbone.stem = nn.Module()
    model.backbone.stem.conv1 = nn.Conv2d(3, 4, 1, bias=False)
    model.backbone.stem.conv1.norm = nn.BatchNorm2d(4)
    blobs = {
        "conv1_w": np.random.rand(4, 3, 1, 1).astype("float32"),
        "conv1_w_momentum": np.zeros((4, 3, 1, 1), "float32"),
        "res_conv1_bn_s": np.random.rand(4).astype("float32"),
        "res_conv1_bn_b": np.random.rand(4).astype("float32"),
    }
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps({"blobs": blobs}))
    DetectionCheckpointer(model).load(str(tmp_path / "R-50.pkl"))
    assert np.array_equal(model.backbone.stem.conv1.weight.detach().numpy(), blobs["conv1_w"])
    assert np.array_equal(model.backbone.stem.conv1.norm.weight.detach().numpy(), blobs["res_conv1_bn_s"])
    assert np.array_equal(model.backbone.stem.conv1.norm.bias.detach().numpy(), blobs["res_conv1_bn_b"])


def test_caffe2_names():
    names = {
        "conv1_w": "stem.conv1.weight",
        "conv1_b": "stem.conv1.bias",
        "res_conv1_bn_s": "stem.conv1.norm.weight",
        "res2_0_branch1_w": "res2.0.shortcut.weight",
        "res2_0_branch1_bn_b": "res2.0.shortcut.norm.bias",
        "res4_22_branch2a_w": "res4.22.conv1.weight",
        "res5_2_branch2b_bn_riv": "res5.2.conv2.norm.running_var",
        "res5_2_branch2c_bn_rm": "res5.2.conv3.norm.running_mean",
    }
    assert convert_basic_c2_names(list(names)) == list(names.values())


@pytest.mark.parametrize("parallel", [False, True])
def test_longest_common_ending_wins(parallel):
    model = nn.Module()
    model.block1 = nn.Module()
    model.block1.layer1 = nn.Linear(2, 3)
    model.layer2 = nn.Linear(3, 2)
    model.res = nn.Module()
    model.res.layer2 = nn.Linear(3, 2)
    weights = random_weights(
        ("layer1.weight", (3, 2)), ("layer1.bias", (3,)), ("layer2.weight", (2, 3)), ("layer2.bias", (2,)),
        ("res.layer2.weight", (2, 3)), ("res.layer2.bias", (2,)),
    )  # fmt: skip
    target = nn.DataParallel(model) if parallel else model
    target.load_state_dict(align_and_update_state_dicts(target.state_dict(), weights))
    for loaded, stored in zip(model.state_dict().values(), weights.values(), strict=True):
        assert torch.equal(loaded, stored)


def test_one_weight_for_two_names_is_an_error():
    model = nn.ModuleDict({"a": nn.ModuleDict({"fc": nn.Linear(1, 1)}), "b": nn.ModuleDict({"fc": nn.Linear(1, 1)})})
    with pytest.raises(ValueError):
        align_and_update_state_dicts(model.state_dict(), random_weights(("fc.weight", (1, 1))), c2_conversion=False)


def test_periodic_checkpoints_keep_the_newest(tmp_path, model):
    periodic = PeriodicCheckpointer(DetectionCheckpointer(model, str(tmp_path)), period=2, max_iter=7, max_to_keep=2)
    for k in range(7):
        periodic.step(k)
    names = sorted(path.name for path in tmp_path.glob("*.pth"))
    assert names == ["model_0000003.pth", "model_0000005.pth", "model_final.pth"]
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
