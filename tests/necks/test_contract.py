"""What every neck promises, checked for all of them, variants included, on a tiny ResNet."""

import pytest
import torch
from detectron2.layers import ShapeSpec

from necks import NECK_REGISTRY

# Levels that the neck reads, and how many it returns.
LEVELS = {"2-5": (["res2", "res3", "res4", "res5"], 0), "3-7": (["res3", "res4", "res5"], 5)}
SIZES = {"even": (128, 256), "odd": (135, 259)}
OPTIONS = {
    "FPN sni": ("FPN", "FPN.UPSAMPLE", "sni"),
    "FPN bottom-up": ("FPN", "FPN.TOP_DOWN", False),
    "FPN no lateral": ("FPN", "FPN.LATERAL", False, "FPN.UPSAMPLE", "bilinear"),
    "FPN soft bilinear": ("FPN", "FPN.UPSAMPLE", "soft_bilinear"),
    "FPN conv": ("FPN", "EXTRA_LEVELS", "conv"),
    "FPN conv from output": ("FPN", "EXTRA_LEVELS", "conv_from_output"),
    "PANet esd1": ("PANet", "PANET.DOWNSAMPLE", "esd1"),
    "BiFPN softmax esd2": ("BiFPN", "BIFPN.FUSION", "softmax", "BIFPN.DOWNSAMPLE", "esd2"),
    "BiFPN unbounded conv": ("BiFPN", "BIFPN.FUSION", "unbounded", "BIFPN.DOWNSAMPLE", "conv"),
    "BiFPN sum": ("BiFPN", "BIFPN.FUSION", "sum"),
    "BiFPN as in paper": ("BiFPN", "BIFPN.AS_IN_PAPER", True),
    "RFP shared": ("RFP", "RFP.SHARED", True, "RFP.STEPS", 3),
    "SA top-down": ("SA", "SA.FUSION", "top_down", "SA.CONV", "gsconve2", "SA.DOWNSAMPLE", "esd2"),
    "SA ihp": ("SA", "SA.FUSION", "none", "SA.CONV", "gsconv"),
    "SA sum": ("SA", "SA.ASSEMBLY", "sum", "SA.DOWNSAMPLE", "esd1"),
}
REGISTERED = {name: (name,) for name, _ in NECK_REGISTRY}
ALL = {**REGISTERED, **OPTIONS}

each_neck = pytest.mark.parametrize("neck", ALL)
each_registered = pytest.mark.parametrize("neck", REGISTERED)


def perturb(model):
    """Move every parameter off its initial value, so that no path is closed by a zero initialization."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@each_neck
@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_contract(build_neck, neck, levels, size, mode):
    in_features, num_levels = LEVELS[levels]
    backbone = perturb(build_neck(*ALL[neck], "IN_FEATURES", in_features, "NUM_LEVELS", num_levels))
    backbone.train(mode == "train")
    images = torch.randn(2, 3, *SIZES[size])
    pyramid = backbone(images)

    low = int(in_features[0].removeprefix("res"))
    high = low + (num_levels or len(in_features))
    expected = {f"p{level}": ShapeSpec(channels=16, stride=2**level) for level in range(low, high)}
    assert backbone.output_shape() == expected
    pyramids = ["", *(backbone.auxiliary_pyramids if mode == "train" else ())]
    assert list(pyramid) == [prefix + name for prefix in pyramids for name in expected]
    for x, shape in zip(pyramid.values(), [*expected.values()] * len(pyramids), strict=True):
        assert x.shape == (2, 16, *(-(-side // shape.stride) for side in SIZES[size]))
        assert x.isfinite().all()

    if mode == "eval":
        for name, alone in backbone(images[1:]).items():
            torch.testing.assert_close(alone, pyramid[name][1:], rtol=1e-4, atol=1e-4)
    else:
        sum((x * torch.randn_like(x)).sum() for x in pyramid.values()).backward()
        assert not [name for name, p in backbone.named_parameters() if p.grad is None or not p.grad.any()]


@each_registered
def test_single_level(build_neck, neck):
    backbone = build_neck(neck, "IN_FEATURES", ["res4"]).eval()
    pyramid = backbone(torch.randn(1, 3, 64, 96))
    assert {name: x.shape for name, x in pyramid.items()} == {"p4": (1, 16, 4, 6)}


@pytest.mark.parametrize("in_features", [["res3", "res4", "res5"], ["res4", "res5"], ["res5"]], ids=len)
@each_registered
def test_few_levels_leave_no_parameter_without_gradient(build_neck, neck, in_features):
    backbone = perturb(build_neck(neck, "IN_FEATURES", in_features, "NASFPN.STACK", 2))
    # In eval, because a batch norm in training takes away all gradient of maps of one pixel.
    pyramid = backbone.eval()(torch.randn(1, 3, 128, 192))
    assert len(pyramid) == len(in_features)
    sum((x * torch.randn_like(x)).sum() for x in pyramid.values()).backward()
    assert not [name for name, p in backbone.neck.named_parameters() if p.grad is None]


@each_neck
# LN computes in single precision, so that maps of both types meet. It divides by the spread of only 16 channels, which
# enlarges rounding errors.
@pytest.mark.parametrize("norm, dtype, tolerance", [("BN", torch.bfloat16, 0.05), ("LN", torch.float32, 0.25)])
def test_autocast(build_neck, neck, norm, dtype, tolerance):
    backbone = build_neck(*ALL[neck], "NORM", norm).eval()
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = backbone(images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result = backbone(images)
    for name, x in result.items():
        assert x.dtype == dtype
        difference = (x.float() - expected[name]).norm() / expected[name].norm()
        assert difference < tolerance


@each_neck
def test_channels_last(build_neck, neck):
    backbone = build_neck(*ALL[neck]).eval()
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = backbone(images)
        backbone.to(memory_format=torch.channels_last)
        result = backbone(images.to(memory_format=torch.channels_last))
    for name, x in result.items():
        assert x.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(x, expected[name], rtol=1e-4, atol=1e-4)


@each_neck
def test_compiles_without_graph_breaks(build_neck, neck):
    torch.compiler.reset()
    backbone = build_neck(*ALL[neck]).eval()
    images = torch.randn(1, 3, 70, 101)
    with torch.no_grad():
        result = torch.compile(backbone, fullgraph=True, backend="eager")(images)
        for name, x in backbone(images).items():
            torch.testing.assert_close(result[name], x)


class Tracer(torch.fx.Tracer):
    """Sees the layers of detectron2 as such and not what is in them."""

    def is_leaf_module(self, module, name):
        return isinstance(module, torch.nn.Conv2d) or super().is_leaf_module(module, name)


@each_neck
@pytest.mark.parametrize("levels", LEVELS)
def test_traces_for_any_size(build_neck, neck, levels):
    in_features, num_levels = LEVELS[levels]
    backbone = build_neck(*ALL[neck], "IN_FEATURES", in_features, "NUM_LEVELS", num_levels).eval()
    traced = torch.fx.GraphModule(backbone.neck, Tracer().trace(backbone.neck))
    for size in SIZES.values():
        features = backbone.bottom_up(torch.randn(1, 3, *size))
        torch.testing.assert_close(traced(features), backbone.neck(features))


@each_registered
def test_exports_for_any_size(build_neck, neck):
    """With extra levels, for images padded to the backbone's stride on which no map has a single row or column."""
    # The smallest context map of AugFPN has a tenth of the rows of res5.
    smallest = 20 if neck == "AugFPN" else 5
    backbone = build_neck(neck, "IN_FEATURES", ["res3", "res4", "res5"], "NUM_LEVELS", 5).eval()
    height, width = (32 * torch.export.Dim(name, min=smallest, max=64) for name in ("height", "width"))
    example = torch.randn(1, 3, 32 * (smallest + 4), 32 * (smallest + 2))
    exported = torch.export.export(backbone, (example,), dynamic_shapes=({2: height, 3: width},)).module()
    for height, width in ((0, 1), (2, 7)):
        images = torch.randn(1, 3, 32 * (smallest + height), 32 * (smallest + width))
        torch.testing.assert_close(exported(images), backbone(images))
