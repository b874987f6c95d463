"""Backbones made of any registered bottom-up network and any registered neck."""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY

from .errors import choose, config_errors
from .neck import NECK_REGISTRY, NeckBackbone


@BACKBONE_REGISTRY.register()
def build_neck_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> NeckBackbone:
    """Build the neck `MODEL.NECK.NAME` on the bottom-up network that `MODEL.NECK.BOTTOM_UP` builds.

    Args:
        cfg: a config with the keys that `add_neck_config` adds.
        input_shape: channels of the image.

    Raises:
        NeckConfigError: unknown neck or bottom-up builder, levels that the bottom-up network does not have, or a value
            that the neck refuses.
    """
    where, keys = f"MODEL.NECK ({cfg.MODEL.NECK.NAME})", _keys_of_arguments(cfg)
    with config_errors(where, keys):
        make_neck = choose("MODEL.NECK.NAME", cfg.MODEL.NECK.NAME, NECK_REGISTRY)
        # What this file registers builds on a bottom-up network and cannot be one.
        bottom_ups = {name: make for name, make in BACKBONE_REGISTRY if make.__module__ != __name__}
        make_bottom_up = choose("MODEL.NECK.BOTTOM_UP", cfg.MODEL.NECK.BOTTOM_UP, bottom_ups)
    bottom_up = make_bottom_up(cfg, input_shape)
    with config_errors(where, keys):
        return make_neck(cfg, _select_levels(cfg, bottom_up.output_shape())).wrap(bottom_up)


def _keys_of_arguments(cfg: CfgNode) -> dict[str, str]:
    """The key in `MODEL.NECK`, or in its node of the chosen neck, that each argument of a neck comes from."""
    neck = cfg.MODEL.NECK
    keys = {"input_shapes": "MODEL.NECK.IN_FEATURES"}
    keys |= {key.lower(): f"MODEL.NECK.{key}" for key, value in neck.items() if not isinstance(value, CfgNode)}
    node = neck.NAME.upper()
    return keys | {key.lower(): f"MODEL.NECK.{node}.{key}" for key in neck.get(node, {})}


def _select_levels(cfg: CfgNode, available: dict[str, ShapeSpec]) -> dict[str, ShapeSpec]:
    wanted = cfg.MODEL.NECK.IN_FEATURES
    missing = [name for name in wanted if name not in available]
    if missing:
        raise ValueError(
            f"MODEL.NECK.IN_FEATURES names {', '.join(missing)}, which {cfg.MODEL.NECK.BOTTOM_UP} does not give; it "
            f"gives {', '.join(available)} (a ResNet gives what MODEL.RESNETS.OUT_FEATURES lists)"
        )
    if repeated := sorted({name for name in wanted if wanted.count(name) > 1}):
        raise ValueError(f"MODEL.NECK.IN_FEATURES repeats {', '.join(repeated)}; each level must be there once")
    return {name: available[name] for name in wanted}


def _register_resnet_shorthand(short_name: str, *options: str) -> None:
    """Register `build_resnet_{short_name}_backbone`: `build_neck_backbone` on a ResNet with these config options."""
    fixed = ["MODEL.NECK.BOTTOM_UP", "build_resnet_backbone", *options]

    def build(cfg: CfgNode, input_shape: ShapeSpec) -> NeckBackbone:
        cfg = cfg.clone()
        cfg.defrost()
        cfg.merge_from_list(fixed)
        return build_neck_backbone(cfg, input_shape)

    build.__name__ = build.__qualname__ = f"build_resnet_{short_name}_backbone"
    build.__doc__ = f"`build_neck_backbone` with {' '.join(fixed)}."
    BACKBONE_REGISTRY.register(build)


for _name in ("BiFPN", "NASFPN", "RFP", "AugFPN", "SSD", "SA"):
    _register_resnet_shorthand(_name.lower(), "MODEL.NECK.NAME", _name)
_register_resnet_shorthand("pan", "MODEL.NECK.NAME", "PANet")
_register_resnet_shorthand("ihp", "MODEL.NECK.NAME", "SA", "MODEL.NECK.SA.FUSION", "none")
