"""Bottom-up networks from timm: EfficientNet, PVTv2, Swin, ConvNeXt, ResNet and whatever else has `features_only`."""

import difflib
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import timm
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from timm.layers import convert_sync_batchnorm, freeze_batch_norm_2d
from timm.models import FeatureInfo, PretrainedCfg
from torch import Tensor, nn

from .errors import choose, config_errors
from .packaged_weights import load_packaged

FORMATS = {"RGB": False, "BGR": True}
"""Whether the channels have to be flipped to RGB, which all of timm reads."""
NORMS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "BN": lambda network: network,
    "SyncBN": convert_sync_batchnorm,
    "FrozenBN": freeze_batch_norm_2d,
}
KEYS = {
    "name": "MODEL.TIMM.NAME",
    "out_features": "MODEL.TIMM.OUT_FEATURES",
    "pretrained": "MODEL.TIMM.PRETRAINED",
    "package": "MODEL.TIMM.PACKAGE",
    "norm": "MODEL.TIMM.NORM",
    "freeze_at": "MODEL.BACKBONE.FREEZE_AT",
    "pixel_mean": "MODEL.PIXEL_MEAN",
    "pixel_std": "MODEL.PIXEL_STD",
    "input_format": "INPUT.FORMAT",
}
"""The config key that each argument of `TimmBackbone` comes from."""


class TimmBackbone(Backbone):
    """A timm network whose levels are named by stride, as in detectron2's ResNet: stride 4 is "res2", 8 "res3", …

    Images of any size are accepted: they are padded with zeros at the right and at the bottom to a multiple of the
    coarsest stride, and a level of stride s comes back as (B, C, ceil(H / s), ceil(W / s)), channels first.

    The detector normalizes images with its own mean and standard deviation. Networks are trained with theirs, so the
    backbone converts from one to the other; nothing is computed where they agree.

    Args:
        name: a timm model, for example "efficientnet_b0" or "pvt_v2_b2.in1k".
        out_features: levels to return. Layers above the highest of them are dropped.
        pretrained: start from the weights that timm publishes for this name, fetched on first use.
        package: take those of this installed Python package instead, one of `necks.packaged_weights.MODULES`; "" for
            timm's.
        norm: what becomes of the network's batch norms: "BN" keeps, "SyncBN" synchronizes, "FrozenBN" freezes them.
            Networks with other norms are left as they are.
        freeze_at: 0 or less freezes nothing, 1 all that comes before the first layer of stride 4, k > 1 everything up
            to "res{k}". What is frozen stays in eval mode: norms keep their statistics, nothing is dropped.
        pixel_mean, pixel_std: normalization that the input already went through, in units of 0 to 255.
        input_format: channel order of the input and of `pixel_mean`, "RGB" or "BGR".

    Raises:
        ValueError: no such model, tag, level or format, no pretrained weights, a normalization of other than three
            channels, or a network that fits images of one size only.
    """

    scale: Tensor
    shift: Tensor

    @configurable
    def __init__(
        self,
        name: str,
        out_features: list[str],
        *,
        pretrained: bool = False,
        package: str = "",
        norm: str = "BN",
        freeze_at: int = 0,
        pixel_mean: Sequence[float] = (123.675, 116.28, 103.53),
        pixel_std: Sequence[float] = (58.395, 57.12, 57.375),
        input_format: str = "RGB",
    ) -> None:
        super().__init__()
        convert_norms = choose("norm", norm, NORMS)
        self.flip_channels = choose("input_format", input_format, FORMATS)
        for argument, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            if len(values) != 3:
                raise ValueError(f"{argument} has length {len(values)}; it must be 3, the channels of an image")
        published = _published(name)
        # Only a network that is built knows its levels, and dropping unused layers needs to know the levels first.
        levels = _levels(_create(name, published))
        if not levels:
            raise ValueError(f"name is {name!r}, a network without levels whose stride is a power of two")
        if missing := [level for level in out_features if level not in levels]:
            raise ValueError(f"out_features has {', '.join(missing)}; the levels of {name} are {', '.join(levels)}")
        out_features = [level for level in levels if level in out_features]
        indices = [levels[level] for level in out_features]
        network = _create(name, published, pretrained, package, out_indices=indices)
        info = _feature_info(network)
        self._out_features = out_features
        self._out_feature_channels = dict(zip(out_features, info.channels(), strict=True))
        self._out_feature_strides = dict(zip(out_features, info.reduction(), strict=True))
        self.channels_are_last = getattr(network, "output_fmt", "NCHW") == "NHWC"
        self.network = convert_norms(network)
        self._frozen = _freeze(self.network, name, freeze_at) if freeze_at > 0 else []
        self.train(self.training)
        self._set_normalization(published, pixel_mean, pixel_std)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec | None = None) -> dict[str, Any]:
        return {
            "name": cfg.MODEL.TIMM.NAME,
            "out_features": cfg.MODEL.TIMM.OUT_FEATURES,
            # The weights of a checkpoint would take their place.
            "pretrained": cfg.MODEL.TIMM.PRETRAINED and not cfg.MODEL.WEIGHTS,
            "package": cfg.MODEL.TIMM.PACKAGE,
            "norm": cfg.MODEL.TIMM.NORM,
            "freeze_at": cfg.MODEL.BACKBONE.FREEZE_AT,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "input_format": cfg.INPUT.FORMAT,
        }

    def train(self, mode: bool = True) -> "TimmBackbone":
        super().train(mode)
        for layer in self._frozen:
            layer.training = False
        return self

    def _set_normalization(
        self, published: PretrainedCfg, pixel_mean: Sequence[float], pixel_std: Sequence[float]
    ) -> None:
        """Keep the scale and shift that turn the detector's normalization into the published one of the network."""
        order = -1 if self.flip_channels else 1
        # On the CPU, because values are asked for: the network may be built on the meta device.
        double = partial(torch.tensor, dtype=torch.float64, device="cpu")
        given_mean, given_std = (double(v[::order]) / 255 for v in (pixel_mean, pixel_std))
        mean, std = double(published.mean), double(published.std)
        scale, shift = given_std / std, (given_mean - mean) / std
        self.same_normalization = torch.allclose(scale, torch.ones_like(scale)) and bool((shift.abs() < 1e-6).all())
        self.register_buffer("scale", scale.float().view(3, 1, 1), persistent=False)
        self.register_buffer("shift", shift.float().view(3, 1, 1), persistent=False)

    @property
    def size_divisibility(self) -> int:
        return max(self._out_feature_strides.values())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) normalized images to {level: (B, C, ceil(H / stride), ceil(W / stride))}."""
        height, width = images.shape[-2:]
        if self.flip_channels:
            images = images.flip(1)
        if not self.same_normalization:
            images = images * self.scale + self.shift
        images = F.pad(images, (0, -width % self.size_divisibility, 0, -height % self.size_divisibility))
        pyramid = {}
        for (level, stride), feature in zip(self._out_feature_strides.items(), self.network(images), strict=True):
            if self.channels_are_last:
                feature = feature.permute(0, 3, 1, 2)
            pyramid[level] = feature[..., : math.ceil(height / stride), : math.ceil(width / stride)]
        return pyramid


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """Build the network that `MODEL.TIMM.NAME` names, as a bottom-up or as a backbone of its own.

    Args:
        cfg: a config with the keys that `add_neck_config` adds.
        input_shape: not read; images have three channels.

    Raises:
        NeckConfigError: see `TimmBackbone`.
    """
    with config_errors("MODEL.TIMM", KEYS):
        return TimmBackbone(cfg, input_shape)


def _published(name: str) -> PretrainedCfg:
    """What timm says about the model: ImageNet's normalization and images of any size where it says nothing."""
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models() + timm.list_pretrained(), cutoff=0.5)
        raise ValueError(f"name is {name!r}, which timm does not have; near matches: {', '.join(near) or 'none'}")
    try:
        return timm.get_pretrained_cfg(name) or PretrainedCfg()
    except RuntimeError as error:
        model, _, tag = name.partition(".")
        known = ", ".join(timm.list_pretrained(f"{model}.*"))
        raise ValueError(f"name is {name!r}; {model} has no weights {tag!r}, but {known or 'none'}") from error


def _create(
    name: str, published: PretrainedCfg, pretrained: bool = False, package: str = "", **options: Any
) -> nn.Module:
    if published.fixed_input_size:
        options["strict_img_size"] = False
    try:
        # An argument that the network does not know raises TypeError even without weights.
        network = timm.create_model(name, features_only=True, **options)
    except (TypeError, RuntimeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"name is {name!r}, which gives no feature pyramid for images of any size ({_first_line(error)})"
        ) from error
    if not pretrained:
        return network
    if package:
        options["pretrained_cfg_overlay"] = {"state_dict": load_packaged(package, name)}
    try:
        return timm.create_model(name, features_only=True, pretrained=True, **options)
    except Exception as error:  # the clients of the hubs raise errors of many unrelated classes
        raise ValueError(
            f"pretrained is True, but the weights of {name} could not be loaded ({_first_line(error)}). Connect to the "
            "internet once so that timm can cache them, or start without them and load a checkpoint"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _feature_info(network: nn.Module) -> FeatureInfo:
    return cast(FeatureInfo, network.feature_info)


def _levels(network: nn.Module) -> dict[str, int]:
    """{"res2": index of the output with stride 4, …}, finest first; where strides repeat, the last output."""
    return {
        f"res{s.bit_length() - 1}": i for i, s in enumerate(_feature_info(network).reduction()) if s.bit_count() == 1
    }


def _freeze(network: nn.Module, name: str, freeze_at: int) -> list[nn.Module]:
    """Stop training all that `TimmBackbone` says `freeze_at` covers, and return it layer by layer.

    timm registers layers in the order they run. What the network owns itself, such as position embeddings, comes first.
    """
    stages = {level["reduction"]: level["module"] for level in _feature_info(network).info}
    stage = stages.get(2 ** max(freeze_at, 2), "")
    # timm flattens "stages.0" to "stages_0" in some of its feature networks.
    prefixes = (f"{stage}.", f"{stage.replace('.', '_')}.")
    names = [module for module, _ in network.named_modules() if module]
    inside = [i for i, module in enumerate(names) if f"{module}.".startswith(prefixes)]
    if not stage or not inside:
        raise ValueError(f"freeze_at is {freeze_at}, but {name} has no separate stage for it; use 0")
    covered = names[: inside[0] if freeze_at == 1 else inside[-1] + 1]
    layers = [network.get_submodule(module) for module in covered]
    for layer in (network, *layers):
        for parameter in layer.parameters(recurse=False):
            parameter.requires_grad = False
    return layers
