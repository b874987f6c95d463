"""ImageNet's ResNets of other code bases under our names: the same features, and back to the same tensors."""

import pytest
import timm
import torch
import torchvision
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_resnet_backbone
from torch import nn

from sparsercnn.conversion.resnet import from_detectron2, from_torchvision, to_detectron2, to_torchvision
from sparsercnn.errors import InputError

LEVELS = ["res2", "res3", "res4", "res5"]


class Detector(nn.Module):
    """As much of a detector as the conversion looks at."""

    def __init__(self, depth: int, norm: str = "FrozenBN", levels: list[str] = LEVELS, stride_in_1x1: bool = False):
        super().__init__()
        cfg = get_cfg()
        resnet = cfg.MODEL.RESNETS
        resnet.DEPTH, resnet.NORM, resnet.OUT_FEATURES, resnet.STRIDE_IN_1X1 = depth, norm, levels, stride_in_1x1
        resnet.RES2_OUT_CHANNELS = 64 if depth < 50 else 256
        self.backbone = nn.Module()
        self.backbone.bottom_up = build_resnet_backbone(cfg, ShapeSpec(channels=3))
        self.head = nn.Linear(2, 2)


def randomize(network: nn.Module) -> nn.Module:
    """Give norms statistics that matter: torch's are those of a norm that does nothing."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, (low, high) in ((module.running_mean, (-0.2, 0.2)), (module.running_var, (0.5, 2.0)),
                                        (module.weight.data, (0.5, 1.0)), (module.bias.data, (-0.2, 0.2))):  # fmt: skip
                tensor.uniform_(low, high)
    return network.eval()


def features_of_torchvision(network: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    maps = {}
    for index in range(1, 5):
        layer = getattr(network, f"layer{index}")
        layer.register_forward_hook(lambda _m, _x, y, name=f"res{index + 1}": maps.update({name: y}))
    with torch.no_grad():
        network(images)
    return maps


@pytest.mark.parametrize(
    ("make", "depth", "norm"),
    [
        (torchvision.models.resnet18, 18, "BN"),
        (torchvision.models.resnet50, 50, "FrozenBN"),
        (lambda: timm.create_model("resnet34"), 34, "FrozenBN"),
        (lambda: timm.create_model("resnet50"), 50, "BN"),
    ],
    ids=["torchvision-18", "torchvision-50", "timm-34", "timm-50"],
)
def test_features_are_theirs(make, depth, norm):
    torch.manual_seed(0)
    theirs, images = randomize(make()), torch.randn(1, 3, 65, 96)
    ours = Detector(depth, norm).eval()
    missing = ours.load_state_dict(from_torchvision(theirs.state_dict(), ours.state_dict()), strict=False)
    assert set(missing.missing_keys) == {"head.weight", "head.bias"} and not missing.unexpected_keys
    expected = features_of_torchvision(theirs, images)
    with torch.no_grad():
        maps = ours.backbone.bottom_up(images)
    for level in LEVELS:
        torch.testing.assert_close(maps[level], expected[level], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("depth", [101, 152])
def test_deep_networks_have_the_same_names(depth):
    with torch.device("meta"):
        theirs = getattr(torchvision.models, f"resnet{depth}")().state_dict()
        ours = Detector(depth, "BN").state_dict()
    converted = from_torchvision(theirs, ours)
    assert {name: x.shape for name, x in converted.items()} == {
        name: x.shape for name, x in ours.items() if name.startswith("backbone.")
    }


def test_back_to_torchvision():
    theirs = randomize(torchvision.models.resnet18()).state_dict()
    back = to_torchvision(from_torchvision(theirs, Detector(18, "BN").state_dict()))
    assert back.keys() == {name for name in theirs if not name.startswith("fc.")}
    assert all(torch.equal(back[name], theirs[name]) for name in back)


def test_a_detector_without_the_last_stage():
    theirs = torchvision.models.resnet18().state_dict()
    converted = from_torchvision(theirs, Detector(18, levels=["res2", "res3", "res4"]).state_dict())
    assert not [name for name in converted if ".res5." in name]


def test_other_networks_are_refused():
    ours = Detector(18).state_dict()
    with pytest.raises(InputError, match="these weights have layer1.2.* see MODEL.RESNETS.DEPTH"):
        from_torchvision(torchvision.models.resnet34().state_dict(), ours)
    with pytest.raises(InputError, match="lack bn1.weight.*of another model"):
        from_torchvision({"conv1.weight": torch.zeros(1)}, ours)
    with pytest.raises(InputError, match="not detectron2's ResNet"):
        from_torchvision(torchvision.models.resnet18().state_dict(), {"backbone.network.conv.weight": torch.zeros(1)})


def test_detectron2s_zoo_and_back():
    ours = Detector(18).state_dict()
    zoo = to_detectron2(ours)
    assert "stem.conv1.weight" in zoo and "res5.1.conv2.norm.running_var" in zoo
    back = from_detectron2(zoo, {name: torch.zeros_like(x) for name, x in ours.items()})
    assert all(torch.equal(back[name], ours[name]) for name in back)
    assert back.keys() == {name for name in ours if name.startswith("backbone.")}


def test_caffe2s_norms_are_a_scale_and_a_bias():
    """detectron2's old files: names as in "res2_0_branch2a_w", and norms that were merged into scale and bias."""
    detector = Detector(50, stride_in_1x1=True)
    ours = detector.state_dict()
    theirs = {}
    for name, x in to_detectron2(ours).items():
        if "running" not in name:
            theirs[caffe2_name(name)] = torch.rand_like(x)
    converted = from_detectron2(theirs, ours)
    detector.load_state_dict(converted, strict=False)
    assert torch.equal(converted["backbone.bottom_up.stem.conv1.weight"], theirs["conv1_w"])
    norm = detector.backbone.bottom_up.res2[0].shortcut.norm
    scale, bias = theirs["res2_0_branch1_bn_s"], theirs["res2_0_branch1_bn_b"]
    x = torch.randn(1, 256, 2, 2)
    torch.testing.assert_close(norm(x), x * scale.view(-1, 1, 1) + bias.view(-1, 1, 1))


def caffe2_name(name: str) -> str:
    name = name.replace("stem.conv1.norm", "res_conv1_bn").replace("stem.conv1", "conv1")
    for ours, theirs in (("shortcut", "branch1"), ("conv1", "branch2a"), ("conv2", "branch2b"), ("conv3", "branch2c")):
        name = name.replace(f".{ours}.", f".{theirs}.")
    name = name.replace("norm.weight", "bn_s").replace("norm.bias", "bn_b")
    name = name.replace("res_conv1_bn.weight", "res_conv1_bn_s").replace("res_conv1_bn.bias", "res_conv1_bn_b")
    return name.replace(".weight", "_w").replace(".bias", "_b").replace(".", "_")
