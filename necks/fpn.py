"""FPN: high-level features flow down to every level.

Lin et al., Feature Pyramid Networks for Object Detection, CVPR 2017, section 3 and the ablations of its Table 1.
"""

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from .layers import UPSAMPLE, MakeExtraLevels, Upsample, chosen_extra_levels, conv, nearest, pooled_levels, size_of
from .neck import NECK_REGISTRY, Neck, NeckConfigError, choose


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
        extra_levels: makes the levels above the inputs, `pooled_levels` or `convolved_levels` of `necks.layers`.
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
    ):
        super().__init__(input_shapes, out_channels, num_levels)
        if not top_down and (finest_only or not lateral):
            raise NeckConfigError(
                "MODEL.NECK.FPN.TOP_DOWN is False: choose True for MODEL.NECK.FPN.LATERAL "
                "and False for MODEL.NECK.FPN.FINEST_ONLY"
            )
        if finest_only and self.num_extra_levels:
            raise NeckConfigError("MODEL.NECK.FPN.FINEST_ONLY is True: choose 0 for MODEL.NECK.NUM_LEVELS")
        if finest_only:
            self.levels = self.levels[:1]
        self.upsample = upsample
        self.top_down = top_down
        read = self.in_channels if lateral else self.in_channels[-1:]
        self.lateral = nn.ModuleList(conv(channels, out_channels, norm=norm) for channels in read)
        num_outputs = len(self.levels) - self.num_extra_levels
        self.output = nn.ModuleList(conv(out_channels, out_channels, 3, norm) for _ in range(num_outputs))
        self.extra = extra_levels(self.num_extra_levels, out_channels, norm)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shapes: dict[str, ShapeSpec]) -> dict:
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
        merged = self.merge(self.inputs(features))
        pyramid = [output(m) for m, output in zip(merged, self.output, strict=False)]
        return dict(zip(self.names, self.extra(pyramid), strict=True))

    def merge(self, inputs: list[Tensor]) -> list[Tensor]:
        """The maps before the output convolutions, one per input level, lowest first."""
        # Without laterals the lower inputs only tell the sizes.
        laterals = [None] * (len(inputs) - len(self.lateral))
        laterals += [lateral(x) for x, lateral in zip(inputs[len(laterals) :], self.lateral, strict=True)]
        if not self.top_down:
            return laterals
        merged = laterals[-1:]
        for x, own in reversed(list(zip(inputs[:-1], laterals[:-1], strict=True))):
            above = self.upsample(merged[0], size_of(x))
            merged.insert(0, above if own is None else own + above)
        return merged
