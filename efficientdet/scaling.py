"""Compound scaling: one coefficient φ sets network, neck, head and input size together.

Tan et al., EfficientDet: Scalable and Efficient Object Detection, CVPR 2020, section 4.2.
"""

from typing import Any, NamedTuple

from .errors import EfficientDetConfigError


class _Scaling(NamedTuple):
    """A row of table 1 of the paper.

    Attributes:
        backbone: timm's name of the bottom-up network.
        input_size: side in pixels of the square that an image is scaled to fit into.
        width, num_layers: channels and layers of the BiFPN.
        head_depth: convolutions before the last one in the class and in the box net.
        fusion: how the BiFPN weights the inputs of a node. The authors leave the weights out of the largest models
            because training is more stable without.
        anchor_scale: side of the smallest anchor of a level, in strides.
    """

    backbone: str
    input_size: int
    width: int
    num_layers: int
    head_depth: int
    fusion: str = "fast"
    anchor_scale: float = 4.0


# The networks are the ports of TensorFlow's, whose padding is the one the models were trained with.
_SCALINGS = (
    _Scaling("tf_efficientnet_b0", 512, 64, 3, 3),
    _Scaling("tf_efficientnet_b1", 640, 88, 4, 3),
    _Scaling("tf_efficientnet_b2", 768, 112, 5, 3),
    _Scaling("tf_efficientnet_b3", 896, 160, 6, 4),
    _Scaling("tf_efficientnet_b4", 1024, 224, 7, 4),
    _Scaling("tf_efficientnet_b5", 1280, 288, 7, 4),
    _Scaling("tf_efficientnet_b6", 1280, 384, 8, 5, "sum"),
    # The paper says nothing of anchors, but in the authors' code those of D7 are larger, as its images are.
    _Scaling("tf_efficientnet_b6", 1536, 384, 8, 5, "sum", 5.0),
)


def scaled_keys(phi: int) -> dict[str, Any]:
    """The config keys that the compound coefficient sets, and their values.

    Args:
        phi: 0 to 7 for EfficientDet-D0 to D7, -1 for no compound scaling.

    Raises:
        EfficientDetConfigError: another number.
    """
    if phi == -1:
        return {}
    if phi not in range(len(_SCALINGS)):
        raise EfficientDetConfigError(f"MODEL.EFFICIENTDET.PHI is {phi}; it must be 0 to 7, or -1 for no scaling")
    scaling = _SCALINGS[phi]
    return {
        "MODEL.TIMM.NAME": scaling.backbone,
        "MODEL.NECK.OUT_CHANNELS": scaling.width,
        "MODEL.NECK.BIFPN.NUM_LAYERS": scaling.num_layers,
        "MODEL.NECK.BIFPN.FUSION": scaling.fusion,
        "MODEL.EFFICIENTDET.DEPTH": scaling.head_depth,
        "MODEL.EFFICIENTDET.ANCHOR_SCALE": scaling.anchor_scale,
        "INPUT.MIN_SIZE_TRAIN": (scaling.input_size,),
        "INPUT.MAX_SIZE_TRAIN": scaling.input_size,
        "INPUT.MIN_SIZE_TEST": scaling.input_size,
        "INPUT.MAX_SIZE_TEST": scaling.input_size,
    }
