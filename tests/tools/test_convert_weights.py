"""tools/convert_weights.py: the checkpoint that it writes, and what it says about files that do not fit."""

import json
from pathlib import Path

import pytest
import torch
import torchvision

from sparsercnn import load_config
from sparsercnn.engine import SparseRCNNCheckpointer, build_model
from tools import convert_weights

ROOT = Path(__file__).parents[2]
D0 = str(ROOT / "configs" / "efficientdet" / "d0.yaml")
NAMES = ROOT / "tests" / "golden" / "state_dict_tf_efficientdet_d0.json"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file as effdet publishes it."""
    path = tmp_path_factory.mktemp("effdet") / "tf_efficientdet_d0.pth"
    torch.save({name: torch.ones(shape) for name, shape in json.loads(NAMES.read_text()).items()}, path)
    return path


def convert(source, output, config_file=D0):
    return convert_weights.main(["--from", "effdet", "--config-file", str(config_file), str(source), str(output)])


def test_the_checkpoint_fills_the_whole_model(weights, tmp_path, capsys):
    output = tmp_path / "new" / "d0.pth"
    assert convert(weights, output) == 0
    assert f"{output}: " in capsys.readouterr().out
    cfg = load_config(D0, ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", str(output)])
    model = build_model(cfg)
    SparseRCNNCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    assert all((p == 1).all() for p in model.parameters())
    assert [path.name for path in output.parent.iterdir()] == ["d0.pth"]


@pytest.mark.parametrize("entry", ["state_dict_ema", "state_dict"])
def test_checkpoints_of_a_training_are_read(weights, tmp_path, entry):
    path = tmp_path / "training.pth"
    other = {"state_dict": {}} if entry == "state_dict_ema" else {}
    torch.save({"epoch": 3, **other, entry: torch.load(weights)}, path)
    assert convert(path, tmp_path / "out.pth") == 0


def error(capsys, *arguments) -> str:
    assert convert(*arguments) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1
    return message


def test_what_cannot_be_read(tmp_path, capsys):
    output = tmp_path / "out.pth"
    assert "there is no file" in error(capsys, tmp_path / "nowhere.pth", output)
    (tmp_path / "text.pth").write_text("hello")
    assert "damaged or not a checkpoint" in error(capsys, tmp_path / "text.pth", output)
    torch.save([1, 2], tmp_path / "list.pth")
    assert "list.pth holds no state dict" in error(capsys, tmp_path / "list.pth", output)
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    assert "other.pth: these are no weights of an effdet model" in error(capsys, tmp_path / "other.pth", output)
    assert not output.exists()


def test_a_config_of_another_size(weights, tmp_path, capsys):
    message = error(capsys, weights, tmp_path / "out.pth", ROOT / "configs" / "efficientdet" / "d1.yaml")
    assert "d0.pth does not fit" in message and "d1.yaml: " in message and "more" in message
    assert not list(tmp_path.iterdir())


def test_a_place_where_nothing_can_be_written(weights, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert "cannot write" in error(capsys, weights, tmp_path / "file" / "out.pth")


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory):
    """A file as torchvision publishes it."""
    path = tmp_path_factory.mktemp("torchvision") / "resnet18.pth"
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18().state_dict(), path)
    return path


@pytest.fixture
def config(tmp_path):
    """Of a small detector on a ResNet-18."""
    path = tmp_path / "config.yaml"
    path.write_text(f"""
_BASE_: "{ROOT}/configs/bccd.yaml"
MODEL:
  RESNETS: {{NORM: FrozenBN, OUT_FEATURES: [res5]}}
  NECK: {{IN_FEATURES: [res5]}}
  ROI_HEADS: {{IN_FEATURES: [p5]}}
  SparseRCNN: {{NUM_HEADS: 1, NUM_PROPOSALS: 3, PROPOSALS: image}}
""")
    return path


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_torchvisions_network_is_loaded_by_a_detector(resnet18, config, tmp_path, ending):
    output = tmp_path / f"R-18{ending}"
    arguments = ["--from", "torchvision", "--config-file", str(config), "--half", str(resnet18), str(output)]
    assert convert_weights.main(arguments) == 0
    model = build_model(load_config(config, ["MODEL.DEVICE", "cpu"]))
    SparseRCNNCheckpointer(model).load(str(output))
    theirs = torch.load(resnet18)
    last = model.backbone.bottom_up.res5[1].conv2.weight
    assert torch.equal(last, theirs["layer4.1.conv2.weight"].half().float())


def test_a_config_with_other_colors(resnet18, config, tmp_path, capsys):
    config.write_text(config.read_text() + "INPUT: {FORMAT: BGR}\n")
    arguments = ["--from", "timm", "--config-file", str(config), str(resnet18), str(tmp_path / "out.pth")]
    assert convert_weights.main(arguments) == 2
    assert "were trained with INPUT.FORMAT RGB, but the config says BGR" in capsys.readouterr().err


def test_back_to_others_from_the_average_of_a_training(resnet18, config, tmp_path):
    """--to takes the averaged weights; what is written for torchvision is what its own model loads."""
    state = build_model(load_config(config, ["MODEL.DEVICE", "cpu"])).state_dict()
    average = {f"module.{name}": x + 1 if x.is_floating_point() else x for name, x in state.items()}
    checkpoint = tmp_path / "model_final.pth"
    torch.save({"model": state, "ema": average, "iteration": 3}, checkpoint)
    for target, name in (("torchvision", "R-18.pth"), ("detectron2", "R-18.pkl"), ("sparsercnn", "all.safetensors")):
        assert convert_weights.main(["--to", target, str(checkpoint), str(tmp_path / name)]) == 0
    network = torchvision.models.resnet18()
    assert set(network.load_state_dict(torch.load(tmp_path / "R-18.pth"), strict=False).missing_keys) == {
        "fc.weight",
        "fc.bias",
    }
    assert torch.equal(network.conv1.weight, state["backbone.bottom_up.stem.conv1.weight"] + 1)
    model = build_model(load_config(config, ["MODEL.DEVICE", "cpu"]))
    for name in ("R-18.pkl", "all.safetensors"):
        SparseRCNNCheckpointer(model).load(str(tmp_path / name))
        assert torch.equal(model.backbone.bottom_up.stem.conv1.weight, network.conv1.weight)
    assert torch.equal(model.init_proposal_boxes.weight, state["init_proposal_boxes.weight"] + 1)


def test_endings(weights, tmp_path, capsys):
    assert "out.onnx must end in .pth or .safetensors" in error(capsys, weights, tmp_path / "out.onnx")
    assert "or with --to detectron2 in .pkl" in error(capsys, weights, tmp_path / "out.pkl")


def test_an_unknown_source(weights, tmp_path, capsys):
    with pytest.raises(SystemExit):
        convert_weights.main(["--from", "nobody", "--config-file", D0, str(weights), str(tmp_path / "out.pth")])
    assert "effdet" in capsys.readouterr().err
