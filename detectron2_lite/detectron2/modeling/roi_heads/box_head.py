"""Box heads: from the pooled features of a box to the vector that classifies and refines it."""

from collections.abc import Sequence

import fvcore.nn.weight_init as weight_init
import torch
from torch import Tensor, nn

from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.utils.registry import Registry

__all__ = ["FastRCNNConvFCHead", "ROI_BOX_HEAD_REGISTRY", "build_box_head"]

ROI_BOX_HEAD_REGISTRY = Registry("ROI_BOX_HEAD")
ROI_BOX_HEAD_REGISTRY.__doc__ = """
Registry of callables `(cfg, input_shape: ShapeSpec) -> nn.Module` that turn RoI features into one vector per box.
"""


@ROI_BOX_HEAD_REGISTRY.register()
class FastRCNNConvFCHead(nn.Sequential):
    """3×3 convolutions with ReLU, then fully connected layers with ReLU.

    Args:
        input_shape: channels, height and width of the pooled features.
        conv_dims: output channels of each convolution.
        fc_dims: width of each fully connected layer.
        conv_norm: normalization of the convolutions; a name for `get_norm`.
    """

    @configurable
    def __init__(
        self, input_shape: ShapeSpec, *, conv_dims: Sequence[int], fc_dims: Sequence[int], conv_norm: str = ""
    ) -> None:
        super().__init__()
        assert len(conv_dims) + len(fc_dims) > 0, "a box head needs a convolution or a fully connected layer"
        channels = input_shape.channels
        self.conv_norm_relus = []
        for i, dim in enumerate(conv_dims, start=1):
            conv = Conv2d(
                channels,
                dim,
                kernel_size=3,
                padding=1,
                bias=not conv_norm,
                norm=get_norm(conv_norm, dim),
                activation=nn.ReLU(),
            )
            self.add_module(f"conv{i}", conv)
            self.conv_norm_relus.append(conv)
            channels = dim
        self._output_shape = ShapeSpec(channels=channels, height=input_shape.height, width=input_shape.width)

        self.fcs = []
        if fc_dims:
            self.add_module("flatten", nn.Flatten())
            features = channels * input_shape.height * input_shape.width
        for i, dim in enumerate(fc_dims, start=1):
            fc = nn.Linear(features, dim)
            self.add_module(f"fc{i}", fc)
            self.add_module(f"fc_relu{i}", nn.ReLU())
            self.fcs.append(fc)
            features = dim
            self._output_shape = ShapeSpec(channels=dim)

        for layer in self.conv_norm_relus:
            weight_init.c2_msra_fill(layer)
        for layer in self.fcs:
            weight_init.c2_xavier_fill(layer)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        head = cfg.MODEL.ROI_BOX_HEAD
        return {
            "input_shape": input_shape,
            "conv_dims": [head.CONV_DIM] * head.NUM_CONV,
            "fc_dims": [head.FC_DIM] * head.NUM_FC,
            "conv_norm": head.NORM,
        }

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) pooled features to (N, fc_dims[-1]), or to (N, conv_dims[-1], H, W) without such layers."""
        for layer in self:
            x = layer(x)
        return x

    @property
    @torch.jit.unused
    def output_shape(self) -> ShapeSpec:
        """Shape of what `forward` returns; height and width are None after fully connected layers."""
        return self._output_shape


def build_box_head(cfg: CfgNode, input_shape: ShapeSpec) -> nn.Module:
    """Build `cfg.MODEL.ROI_BOX_HEAD.NAME` for pooled features of the given shape."""
    return ROI_BOX_HEAD_REGISTRY.get(cfg.MODEL.ROI_BOX_HEAD.NAME)(cfg, input_shape)
