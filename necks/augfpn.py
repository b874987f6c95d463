"""AugFPN: three repairs to FPN. Two are here; the third, soft RoI selection, is `MODEL.ROI_ROUTING.MODE soft`.

Guo et al., AugFPN: Improving Multi-scale Feature Learning for Object Detection, CVPR 2020, sections 3.1 and 3.2.
"""

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor, nn

from .layers import MakeExtraLevels, bilinear, chosen_extra_levels, conv, nearest, pooled_levels, size_of
from .neck import NECK_REGISTRY, Neck, NeckConfigError, SupervisedNeckBackbone, check_at_least


class ResidualFeatureAugmentation(nn.Module):
    """Context of the highest level, pooled at several ratios and fused with a weight per ratio and pixel.

    It gives back what the 1×1 lateral of that level, which no higher level can help, loses with the channels.

    Args:
        in_channels: of the highest bottom-up level.
        out_channels: of the pyramid.
        ratios: sizes of the pooled maps relative to the input, above 0 and at most 1.

    Raises:
        NeckConfigError: no ratios, or others than these.
    """

    def __init__(self, in_channels: int, out_channels: int, ratios: tuple[float, ...] = (0.1, 0.2, 0.3)):
        super().__init__()
        if not ratios or not all(isinstance(ratio, (int, float)) and 0 < ratio <= 1 for ratio in ratios):
            raise NeckConfigError(
                f"MODEL.NECK.AUGFPN.RATIOS is {ratios!r}: choose one or more numbers above 0 and at most 1"
            )
        self.ratios = tuple(ratios)
        self.reduce = nn.ModuleList(conv(in_channels, out_channels) for _ in ratios)
        self.weigh = nn.Sequential(
            conv(len(ratios) * out_channels, out_channels, activation=F.relu),
            conv(out_channels, len(ratios), 3),
        )

    def contexts(self, x: Tensor) -> list[Tensor]:
        """(B, in_channels, H, W) to one (B, out_channels, H, W) per ratio."""
        height, width = size_of(x)
        sizes = [(max(1, int(height * ratio)), max(1, int(width * ratio))) for ratio in self.ratios]
        pooled = [reduce(F.adaptive_avg_pool2d(x, size)) for reduce, size in zip(self.reduce, sizes, strict=True)]
        return [bilinear(context, (height, width)) for context in pooled]

    def weights(self, contexts: list[Tensor]) -> Tensor:
        """Adaptive spatial fusion: (B, ratios, H, W) weights that sum to one at every pixel.

        The authors' code takes a sigmoid of each weight on its own. With normalised weights the sum keeps the scale
        of the contexts, however many ratios there are.
        """
        return self.weigh(torch.cat(contexts, dim=1)).softmax(dim=1)

    def forward(self, x: Tensor) -> Tensor:
        contexts = self.contexts(x)
        weights = self.weights(contexts).split(1, dim=1)
        return sum(weight * context for weight, context in zip(weights, contexts, strict=True))


@NECK_REGISTRY.register()
class AugFPN(Neck):
    """FPN whose highest level is augmented with context, and whose laterals are supervised in training.

    Consistent supervision makes the maps agree before they are summed: in training the detector's head, with the same
    parameters, also learns on the pyramid of the laterals.

    Args:
        input_shapes: channels and stride of each bottom-up level, lowest level first.
        out_channels: channels of every output level.
        num_levels: output levels, 0 for as many as inputs.
        norm: a name that `detectron2.layers.get_norm` knows, "" for none.
        ratios: sizes of the pooled context maps relative to the highest input.
        supervision_weight: weight of the loss on the laterals, not negative.
        extra_levels: makes the levels above the inputs, `pooled_levels` or `convolved_levels` of `necks.layers`.
    """

    @configurable
    def __init__(
        self,
        input_shapes: dict[str, ShapeSpec],
        out_channels: int,
        num_levels: int = 0,
        norm: str = "",
        ratios: tuple[float, ...] = (0.1, 0.2, 0.3),
        supervision_weight: float = 0.25,
        extra_levels: MakeExtraLevels = pooled_levels,
    ):
        super().__init__(input_shapes, out_channels, num_levels)
        check_at_least("MODEL.NECK.AUGFPN.SUPERVISION_WEIGHT", supervision_weight, 0)
        self.supervision_weight = supervision_weight
        self.lateral = nn.ModuleList(conv(channels, out_channels, norm=norm) for channels in self.in_channels)
        self.augment = ResidualFeatureAugmentation(self.in_channels[-1], out_channels, ratios)
        self.output = nn.ModuleList(conv(out_channels, out_channels, 3, norm) for _ in self.in_channels)
        self.extra = extra_levels(self.num_extra_levels, out_channels, norm)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shapes: dict[str, ShapeSpec]) -> dict:
        own = cfg.MODEL.NECK.AUGFPN
        return super().from_config(cfg, input_shapes) | {
            "norm": cfg.MODEL.NECK.NORM,
            "ratios": own.RATIOS,
            "supervision_weight": own.SUPERVISION_WEIGHT,
            "extra_levels": chosen_extra_levels(cfg),
        }

    def wrap(self, bottom_up: Backbone) -> SupervisedNeckBackbone:
        return SupervisedNeckBackbone(bottom_up, self)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        inputs = self.inputs(features)
        return self._fuse(inputs[-1], self._laterals(inputs))

    def forward_supervised(
        self, features: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], list[tuple[float, dict[str, Tensor]]]]:
        """The pyramid, and the laterals as an auxiliary pyramid with the weight of its loss."""
        inputs = self.inputs(features)
        laterals = self._laterals(inputs)
        return self._fuse(inputs[-1], laterals), [(self.supervision_weight, self._pyramid(laterals))]

    def _laterals(self, inputs: list[Tensor]) -> list[Tensor]:
        return [lateral(x) for x, lateral in zip(inputs, self.lateral, strict=True)]

    def _fuse(self, highest_input: Tensor, laterals: list[Tensor]) -> dict[str, Tensor]:
        *lower, highest = laterals
        merged = [highest + self.augment(highest_input)]
        for own in reversed(lower):
            merged.insert(0, own + nearest(merged[0], size_of(own)))
        return self._pyramid([output(m) for m, output in zip(merged, self.output, strict=True)])

    def _pyramid(self, maps: list[Tensor]) -> dict[str, Tensor]:
        return dict(zip(self.names, self.extra(maps), strict=True))
