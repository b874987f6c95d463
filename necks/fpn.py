"""FPN: high-level features flow down to every level.

Lin et al., Feature Pyramid Networks for Object Detection, CVPR 2017, section 3 and the ablations of its Table 1.
"""

from operator import add
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from .errors import choose
from .layers import (
    UPSAMPLE,
    MakeExtraLevels,
    Upsample,
    chosen_extra_levels,
    conv,
    nearest,
    pooled_levels,
    top_down_path,
)
from .neck import NECK_REGISTRY, Neck


@NECK_REGISTRY.register()
class FPN(Neck):
    """1×1 laterals, top-down upsampling and addition, 3×3 output convolutions.

    Args:
        input_shapes: channels and stride of each bottom-up level, lowest level first.
        out_channels: channels of every output level.
        num_levels: output levels, 0 for as many as inputs.
        norm: a name that `detectron2.layers.get_norm` knows, "" for none.
        upsample: brings a level to the size of the one below it.
        top_down: False for a bottom-up pyramid, in which no level sees another.
        lateral: False to let only the highest level into the top-down path.
        finest_only: return the lowest level alone.
        extra_levels: makes the levels above the inputs, one of `necks.layers.EXTRA_LEVELS`.

    Raises:
        ValueError: options that contradict each other.
    """

    @configurable
    def __init__(
        self,
        input_shapes: dict[str, ShapeSpec],
        out_channels: int,
        num_levels: int = 0,
        norm: str = "",
        upsample: Upsample = nearest,
        top_down: bool = True,
        lateral: bool = True,
        finest_only: bool = False,
        extra_levels: MakeExtraLevels = pooled_levels,
    ) -> None:
        super().__init__(input_shapes, out_channels, num_levels)
        if not top_down and (finest_only or not lateral):
            raise ValueError(
                "top_down is False; it must be True where lateral is False or finest_only is True, because the lowest "
                "level would be the only one, or the highest the only one with anything in it"
            )
        if finest_only and self.num_extra_levels:
            raise ValueError(f"num_levels is {num_levels}; it must be 0 where finest_only is True")
        if finest_only:
            self.levels = self.levels[:1]
        self.upsample = upsample
        self.top_down = top_down
        read = self.in_channels if lateral else self.in_channels[-1:]
        self.lateral = nn.ModuleList(conv(channels, out_channels, norm=norm) for channels in read)
        num_outputs = len(self.levels) - self.num_extra_levels
        self.output = nn.ModuleList(conv(out_channels, out_channels, 3, norm) for _ in range(num_outputs))
        self.extra = extra_levels(self.num_extra_levels, self.in_channels[-1], out_channels, norm)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shapes: dict[str, ShapeSpec]) -> dict[str, Any]:
        fpn = cfg.MODEL.NECK.FPN
        return {
            **super().from_config(cfg, input_shapes),
            "norm": cfg.MODEL.NECK.NORM,
            "upsample": choose("MODEL.NECK.FPN.UPSAMPLE", fpn.UPSAMPLE, UPSAMPLE),
            "top_down": fpn.TOP_DOWN,
            "lateral": fpn.LATERAL,
            "finest_only": fpn.FINEST_ONLY,
            "extra_levels": chosen_extra_levels(cfg),
        }

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        inputs = self.inputs(features)
        pyramid = [output(m) for m, output in zip(self.merge(inputs), self.output, strict=False)]
        return dict(zip(self.names, self.extra(pyramid, inputs[-1]), strict=True))

    def merge(self, inputs: list[Tensor]) -> list[Tensor]:
        """The maps before the output convolutions, one per input level, lowest first."""
        # Without laterals the lower inputs only tell the sizes.
        sizes = inputs[: len(inputs) - len(self.lateral)]
        laterals = [lateral(x) for x, lateral in zip(inputs[len(sizes) :], self.lateral, strict=True)]
        if not self.top_down:
            return laterals
        merge = _take_above if sizes else add
        return top_down_path([*sizes, *laterals], self.upsample, [merge] * (len(inputs) - 1))


def _take_above(_: Tensor, above: Tensor) -> Tensor:
    return above
