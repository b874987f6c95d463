"""What is compared: detectors that are equal but for the neck."""

from dataclasses import dataclass
from pathlib import Path

from detectron2.config import CfgNode

from sparsercnn import load_config
from sparsercnn.errors import InputError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
RESNET = "build_resnet_backbone"


@dataclass(frozen=True)
class Arm:
    """A neck that takes part.

    Attributes:
        name: what tables call it.
        config: the file that it comes from.
        options: keys and values that replace those of the file.
    """

    name: str
    config: Path
    options: tuple[str, ...] = ()

    @classmethod
    def of(cls, config: Path) -> "Arm":
        """The neck of a config, named like the file."""
        return cls(config.stem, config)


REFERENCE = Arm.of(CONFIGS / "necks" / "fpn.yaml")
"""What all others are compared with."""
CONTROL = Arm("bottom_up", REFERENCE.config, ("MODEL.NECK.FPN.TOP_DOWN", "False"))
"""FPN without its top-down path, which costs 9 points of average recall in the paper (Lin et al., CVPR 2017, table 1).

An experiment that does not see it cannot tell necks apart.
"""
NECKS = ("ssd", "ihp", "sa", "sa_rcnn", "sa_sum", "panet", "bifpn", "augfpn", "rfp")
DEFAULT = (
    *(Arm.of(CONFIGS / "necks" / f"{name}.yaml") for name in NECKS),
    # At equal iterations all seven layers would take half of the time of the whole comparison.
    Arm("nasfpn_3_layers", CONFIGS / "necks" / "nasfpn.yaml", ("MODEL.NECK.NASFPN.STACK", "3")),
)
"""All of configs/necks but those with a bottom-up network of their own."""


def arm_config(arm: Arm, experiment: Path, options: tuple[str, ...] = ()) -> CfgNode:
    """The detector of `experiment` with the neck of `arm`, and the way in which that neck's boxes read levels.

    Width, levels and norm are the experiment's, the same for all.

    Args:
        arm: the neck.
        experiment: config of the comparison.
        options: keys and values that replace those of the experiment.

    Raises:
        InputError: a file or a key is wrong, or the neck's config has a bottom-up network of its own.
    """
    cfg = load_config(experiment, options)
    neck = load_config(arm.config, arm.options).MODEL
    if neck.NECK.BOTTOM_UP != RESNET:
        raise InputError(
            f"{arm.config} is about the bottom-up network {neck.NECK.BOTTOM_UP} and not about a neck alone; what is "
            "below the neck comes from the config of the comparison"
        )
    cfg.MODEL.NECK.NAME = neck.NECK.NAME
    cfg.MODEL.NECK.EXTRA_LEVELS = neck.NECK.EXTRA_LEVELS
    for name, node in neck.NECK.items():
        if isinstance(node, CfgNode):
            cfg.MODEL.NECK[name] = node
    cfg.MODEL.ROI_ROUTING.MODE = neck.ROI_ROUTING.MODE
    return cfg


def fits(arm: Arm, cfg: CfgNode) -> bool:
    """Whether the neck of `arm` can stand on the bottom-up network of `cfg`: RFP feeds back into blocks of a ResNet."""
    name = load_config(arm.config, arm.options).MODEL.NECK.NAME
    return name != "RFP" or cfg.MODEL.NECK.BOTTOM_UP == RESNET
