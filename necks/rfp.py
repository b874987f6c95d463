"""Recursive feature pyramid: look, then look again with what was seen fed back into the bottom-up network.

Qiao et al., DetectoRS: Detecting Objects with Recursive Feature Pyramid and Switchable Atrous Convolution, CVPR 2021,
section 3.
"""

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone, ResNet
from torch import Tensor, nn

from .fpn import FPN
from .layers import MakeExtraLevels, chosen_extra_levels, nearest, pooled_levels, size_of
from .neck import NECK_REGISTRY, Neck, NeckBackbone, NeckConfigError, check_at_least


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: four views of a map, a quarter of the channels each, after ReLU.

    The views are a 1×1 convolution, 3×3 convolutions dilated by 3 and by 6, and a 1×1 convolution of the global mean.
    """

    def __init__(self, channels: int):
        super().__init__()
        quarter = channels // 4
        self.point = nn.Conv2d(channels, quarter, 1)
        self.dilated = nn.ModuleList(nn.Conv2d(channels, quarter, 3, padding=d, dilation=d) for d in (3, 6))
        self.context = nn.Conv2d(channels, channels - 3 * quarter, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        context = self.context(x.mean(dim=(2, 3), keepdim=True)).expand(-1, -1, *size_of(x))
        return F.relu(torch.cat([self.point(x), *(dilated(x) for dilated in self.dilated), context], dim=1))


@NECK_REGISTRY.register()
class RFP(Neck):
    """FPN and what makes it recursive: transforms of its output into feedback, and the gate between two steps.

    On features alone, without the bottom-up network, it is a plain FPN: the first step. `wrap` makes the recursion.

    Args:
        input_shapes: channels and stride of each bottom-up level, lowest level first.
        out_channels: channels of every output level, at least 4.
        num_levels: output levels, 0 for as many as inputs.
        norm: a name that `detectron2.layers.get_norm` knows, "" for none.
        steps: how often the bottom-up network runs; all steps share their weights.
        extra_levels: makes the levels above the inputs, `pooled_levels` or `convolved_levels` of `necks.layers`.
    """

    @configurable
    def __init__(
        self,
        input_shapes: dict[str, ShapeSpec],
        out_channels: int,
        num_levels: int = 0,
        norm: str = "",
        steps: int = 2,
        extra_levels: MakeExtraLevels = pooled_levels,
    ):
        super().__init__(input_shapes, out_channels, num_levels)
        check_at_least("MODEL.NECK.OUT_CHANNELS", out_channels, 4)
        if steps < 2:
            raise NeckConfigError(
                f"MODEL.NECK.RFP.STEPS is {steps}: choose 2 or more, or MODEL.NECK.NAME FPN for one step"
            )
        self.steps = steps
        self.fpn = FPN(input_shapes, out_channels, num_levels, norm, extra_levels=extra_levels)
        self.aspp = ASPP(out_channels)
        # Starting from zero, training begins with the bottom-up network as it was pretrained.
        self.feedback = nn.ModuleList(_zero_conv(out_channels, channels) for channels in self.in_channels)
        self.gate = _zero_conv(out_channels, 1)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shapes: dict[str, ShapeSpec]) -> dict:
        return super().from_config(cfg, input_shapes) | {
            "norm": cfg.MODEL.NECK.NORM,
            "steps": cfg.MODEL.NECK.RFP.STEPS,
            "extra_levels": chosen_extra_levels(cfg),
        }

    def wrap(self, bottom_up: Backbone) -> "RecursiveBackbone":
        return RecursiveBackbone(bottom_up, self)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.fpn(features)

    def feed_back(self, pyramid: dict[str, Tensor]) -> dict[str, Tensor]:
        """What each bottom-up level is to add in the next step, with the channels of that level."""
        levels = zip(self.in_features, pyramid.values(), self.feedback, strict=False)
        return {name: feedback(self.aspp(p)) for name, p, feedback in levels}

    def blend(self, before: dict[str, Tensor], after: dict[str, Tensor]) -> dict[str, Tensor]:
        """g · after + (1 − g) · before, where g is a sigmoid of `after` at each pixel."""
        # Under autocast a norm may leave a map in another type than the gate's convolution gives.
        gates = {name: self.gate(p).sigmoid().to(p.dtype) for name, p in after.items()}
        return {name: torch.lerp(before[name].to(p.dtype), p, gates[name]) for name, p in after.items()}


class RecursiveBackbone(NeckBackbone):
    """A ResNet and the recursive pyramid on it.

    The feedback of a level joins the output of the first block of the stage with that name, followed by another ReLU,
    so that the blocks after it read non-negative maps as ever. DetectoRS adds it inside that block, before the block's
    own ReLU; here it joins after it, because a block then stays detectron2's own, whatever its kind. The stem sees no
    feedback and runs once.

    Raises:
        NeckConfigError: the bottom-up network has no stages of blocks to feed back into.
    """

    def __init__(self, bottom_up: Backbone, neck: RFP):
        if not isinstance(bottom_up, ResNet):
            raise NeckConfigError(
                f"MODEL.NECK.BOTTOM_UP makes a {type(bottom_up).__name__}: RFP feeds back into the blocks of a ResNet, "
                "choose build_resnet_backbone"
            )
        if missing := [name for name in neck.in_features if name not in bottom_up.stage_names]:
            raise NeckConfigError(
                f"MODEL.NECK.IN_FEATURES: RFP cannot feed back into {', '.join(missing)}, "
                f"choose among {', '.join(bottom_up.stage_names)}"
            )
        super().__init__(bottom_up, neck)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        stem = self.bottom_up.stem(images)
        pyramid = self.neck(self._run_stages(stem, {}))
        for _ in range(self.neck.steps - 1):
            again = self.neck(self._run_stages(stem, self.neck.feed_back(pyramid)))
            pyramid = self.neck.blend(pyramid, again)
        return pyramid

    def _run_stages(self, x: Tensor, feedback: dict[str, Tensor]) -> dict[str, Tensor]:
        features = {}
        for name, (first, *others) in zip(self.bottom_up.stage_names, self.bottom_up.stages, strict=True):
            x = first(x)
            if name in feedback:
                x = F.relu(x + nearest(feedback[name], size_of(x)))
            for block in others:
                x = block(x)
            features[name] = x
        return features


def _zero_conv(in_channels: int, out_channels: int) -> nn.Conv2d:
    layer = nn.Conv2d(in_channels, out_channels, 1)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
