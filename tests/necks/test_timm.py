import copy

import huggingface_hub.constants
import pytest
import timm
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from timm.models import FeatureInfo, register_model
from torch import nn

from necks import NeckConfigError, TimmBackbone, add_neck_config

LEVELS = ["res2", "res3", "res4", "res5"]
IMAGENET = {"pixel_mean": [123.675, 116.28, 103.53], "pixel_std": [58.395, 57.12, 57.375]}


@pytest.mark.parametrize(
    "name",
    [
        "resnet10t",
        "efficientnet_b0",
        "pvt_v2_b0",
        "convnext_atto",
        "swin_tiny_patch4_window7_224",
        "mobilenetv3_small_050",
    ],
)
@pytest.mark.parametrize("size", [(64, 96), (67, 45)], ids=["even", "odd"])
def test_levels_are_as_declared_for_any_size(name, size):
    backbone = TimmBackbone(name, LEVELS).eval()
    shapes = backbone.output_shape()
    assert {level: shape.stride for level, shape in shapes.items()} == {"res2": 4, "res3": 8, "res4": 16, "res5": 32}
    features = backbone(torch.randn(1, 3, *size))
    assert list(features) == LEVELS
    for level, feature in features.items():
        expected = [-(-side // shapes[level].stride) for side in size]
        assert list(feature.shape) == [1, shapes[level].channels, *expected]
        assert feature.isfinite().all()


def test_features_are_those_of_the_timm_network():
    backbone = TimmBackbone("resnet10t", ["res3", "res5"]).eval()
    network = timm.create_model("resnet10t", features_only=True, pretrained=False).eval()
    network.load_state_dict(backbone.network.state_dict())
    images = torch.randn(2, 3, 64, 64)
    expected = network(images)
    got = backbone(images)
    torch.testing.assert_close(got["res3"], expected[2])
    torch.testing.assert_close(got["res5"], expected[4])


def test_layers_above_the_wanted_levels_are_dropped():
    backbone = TimmBackbone("resnet10t", ["res2", "res3"])
    sum(f.square().mean() for f in backbone(torch.randn(2, 3, 64, 64)).values()).backward()
    assert [name for name, p in backbone.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(
    "given",
    [
        {"pixel_mean": [103.53, 116.28, 123.675], "pixel_std": [1.0, 1.0, 1.0], "input_format": "BGR"},
        {"pixel_mean": [127.5, 127.5, 127.5], "pixel_std": [127.5, 127.5, 127.5], "input_format": "RGB"},
        {**IMAGENET, "input_format": "RGB"},
    ],
    ids=["detectron2", "half", "imagenet"],
)
def test_the_network_sees_its_own_normalization_whatever_the_detector_uses(given):
    backbone = TimmBackbone("resnet10t", ["res2"], **given)
    seen = []
    backbone.network.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    rgb = torch.randint(256, (1, 3, 32, 32)).float()
    image = rgb.flip(1) if given["input_format"] == "BGR" else rgb
    mean, std = (torch.tensor(given[key]).view(3, 1, 1) for key in ("pixel_mean", "pixel_std"))
    backbone((image - mean) / std)
    published = timm.get_pretrained_cfg("resnet10t")
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (published.mean, published.std))
    torch.testing.assert_close(seen[0], (rgb / 255 - mean) / std, atol=1e-5, rtol=0)


def trained(module: nn.Module) -> set[str]:
    return {name.split(".")[0] for name, p in module.named_parameters() if p.requires_grad}


@register_model
def tiny_unpublished(pretrained=False, out_indices=(0, 1), strides=(4, 8), **others):
    """A network of the user's own, of which timm knows no normalization and no weights."""
    return Unpublished(out_indices, strides)


@register_model
def tiny_unusual(**options):
    return tiny_unpublished(**options, strides=(3, 6))


class Unpublished(nn.Module):
    """Two stages with dropout, and a position embedding that belongs to none of them."""

    def __init__(self, out_indices, strides):
        super().__init__()
        self.position = nn.Parameter(torch.zeros(4, 1, 1))
        self.stem = nn.Conv2d(3, 4, 2, stride=strides[0] // 2)
        self.stages = nn.ModuleList(nn.Sequential(nn.Conv2d(4, 4, 2, stride=2), nn.Dropout(0.5)) for _ in strides)
        levels = [{"num_chs": 4, "reduction": s, "module": f"stages.{i}"} for i, s in enumerate(strides)]
        self.feature_info = FeatureInfo(levels, out_indices)

    def forward(self, x):
        fine = self.stages[0](self.stem(x) + self.position)
        return [(fine, self.stages[1](fine))[i] for i in self.feature_info.out_indices]


def test_a_model_that_timm_knows_nothing_about_reads_what_imagenet_models_read():
    backbone = TimmBackbone("tiny_unpublished", ["res2", "res3"], **IMAGENET).eval()
    images = torch.randn(1, 3, 32, 48)
    torch.testing.assert_close(list(backbone(images).values()), backbone.network(images))


def test_frozen_stages_drop_nothing_and_keep_the_position_embedding():
    free = TimmBackbone("tiny_unpublished", ["res2", "res3"]).train()
    assert all(p.requires_grad for p in free.parameters())
    frozen = TimmBackbone("tiny_unpublished", ["res2", "res3"], freeze_at=2)
    assert trained(frozen.network) == {"stages"}
    assert {name for name, p in frozen.named_parameters() if p.requires_grad} == {
        "network.stages.1.0.weight",
        "network.stages.1.0.bias",
    }
    images = torch.randn(1, 3, 64, 64)
    for network in (frozen, frozen.eval().train(), copy.deepcopy(frozen).train()):
        first, second = network(images), network(images)
        assert torch.equal(first["res2"], second["res2"])
        assert not torch.equal(first["res3"], second["res3"])
    assert not torch.equal(free(images)["res2"], free(images)["res2"])


def test_freeze_at_stops_stages_and_their_statistics():
    stages = {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"}
    for nothing in (0, -1):
        assert trained(TimmBackbone("resnet10t", LEVELS, freeze_at=nothing).network) == stages
    assert trained(TimmBackbone("resnet10t", LEVELS, freeze_at=1).network) == stages - {"conv1", "bn1"}
    backbone = TimmBackbone("resnet10t", LEVELS, freeze_at=2).train()
    assert trained(backbone.network) == stages - {"conv1", "bn1", "layer1"}
    before = {name: buffer.clone() for name, buffer in backbone.network.named_buffers()}
    backbone(torch.randn(2, 3, 64, 64))
    changed = {
        name.split(".")[0] for name, buffer in backbone.network.named_buffers() if not buffer.equal(before[name])
    }
    assert changed == {"layer2", "layer3", "layer4"}


@pytest.mark.parametrize("name", ["efficientnet_b0", "swin_tiny_patch4_window7_224"])
def test_freezing_keeps_the_numbers(name):
    torch.manual_seed(0)
    free = TimmBackbone(name, ["res3", "res4"]).eval()
    frozen = TimmBackbone(name, ["res3", "res4"], freeze_at=2).eval()
    frozen.load_state_dict(free.state_dict(), strict=False)
    assert sum(p.requires_grad for p in frozen.parameters()) < sum(p.requires_grad for p in free.parameters())
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(frozen(images), free(images))


def test_norms():
    def kinds(norm: str) -> set[str]:
        modules = TimmBackbone("efficientnet_b0", ["res3"], norm=norm).modules()
        return {type(module).__name__ for module in modules if "Norm" in type(module).__name__}

    assert kinds("BN") == {"BatchNormAct2d"}
    assert kinds("SyncBN") == {"SyncBatchNormAct"}
    assert kinds("FrozenBN") == {"FrozenBatchNormAct2d"}


def test_built_from_a_config_below_a_neck():
    cfg = get_cfg()
    add_neck_config(cfg)
    cfg.merge_from_list(
        ["MODEL.BACKBONE.NAME", "build_neck_backbone", "MODEL.NECK.BOTTOM_UP", "build_timm_backbone"]
        + ["MODEL.TIMM.NAME", "resnet10t", "MODEL.TIMM.PRETRAINED", "False", "MODEL.NECK.OUT_CHANNELS", "8"]
    )
    backbone = build_backbone(cfg)
    assert backbone.size_divisibility == 32
    assert not any(p.requires_grad for p in backbone.bottom_up.network["layer1"].parameters())  # FREEZE_AT is 2
    assert {n: f.shape[1:] for n, f in backbone(torch.randn(1, 3, 65, 97)).items()} == {
        "p2": (8, 17, 25),
        "p3": (8, 9, 13),
        "p4": (8, 5, 7),
        "p5": (8, 3, 4),
    }
    assert backbone.output_shape()["p3"] == ShapeSpec(channels=8, stride=8)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"name": "resnet_50"}, "name is 'resnet_50', which timm does not have; .*resnet50"),
        (
            {"name": "maxvit_tiny_tf_224"},
            "name is 'maxvit_tiny_tf_224', which gives no feature pyramid for images of any",
        ),
        ({"name": "convnext_atto", "out_features": ["res1"]}, "out_features has res1; the levels .*res2, res3"),
        ({"name": "resnet10t", "norm": "LN"}, "norm is 'LN'; it must be one of BN, FrozenBN, SyncBN"),
        ({"name": "resnet10t", "freeze_at": 9}, "freeze_at is 9"),
        ({"name": "resnet10t", "pixel_mean": [0.0]}, "pixel_mean has length 1; it must be 3"),
        ({"name": "resnet10t", "pixel_std": [1.0] * 4}, "pixel_std has length 4; it must be 3"),
        ({"name": "resnet10t", "input_format": "L"}, "input_format is 'L'; it must be one of BGR, RGB"),
        ({"name": "resnet50.foo"}, r"name is 'resnet50.foo'; resnet50 has no weights 'foo', .*resnet50\.a1_in1k"),
        ({"name": "tiny_unusual"}, "name is 'tiny_unusual', a network without levels whose stride is a power of two"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        TimmBackbone(**{"out_features": LEVELS, **arguments})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("MODEL.TIMM.NAME", "resnet_50", "MODEL.TIMM.NAME is 'resnet_50', which timm does not have"),
        ("MODEL.TIMM.OUT_FEATURES", ["res9"], "MODEL.TIMM.OUT_FEATURES has res9; the levels"),
        ("MODEL.BACKBONE.FREEZE_AT", 9, "MODEL.BACKBONE.FREEZE_AT is 9"),
        ("MODEL.PIXEL_MEAN", [0.0], "MODEL.PIXEL_MEAN has length 1"),
        ("INPUT.FORMAT", "L", "INPUT.FORMAT is 'L'; it must be one of BGR, RGB"),
    ],
)
def test_mistakes_in_a_config_name_the_key(key, value, message):
    cfg = get_cfg()
    add_neck_config(cfg)
    cfg.merge_from_list(["MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", "resnet10t"])
    cfg.merge_from_list(["MODEL.TIMM.PRETRAINED", False, key, value])
    with pytest.raises(NeckConfigError, match=f"^{message}"):
        build_backbone(cfg)


def test_missing_pretrained_weights_name_the_model_and_the_way_out(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ValueError, match="^pretrained is True, but .* resnet10t could not be loaded.*start without"
    ) as caught:
        TimmBackbone("resnet10t", LEVELS, pretrained=True)
    assert "\n" not in str(caught.value)
