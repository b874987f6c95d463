"""Frozen batch norm applied to the weights of the convolution before it, which are smaller than what comes out of it.

A frozen batch norm is y · s + b with fixed s and b for each channel, so conv(x, W) · s + b = conv(x, W · s) + b, and
the gradient reaches W through the product.
"""

from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, nn
from torch.nn import functional as F


class FrozenNormConv2d(Conv2d):
    """detectron2's `Conv2d` with a `FrozenBatchNorm2d`: the same parameters, names and results."""

    def forward(self, x: Tensor) -> Tensor:
        if self.norm is None:  # folded away for inference
            return super().forward(x)
        scale = self.norm.weight * (self.norm.running_var + self.norm.eps).rsqrt()
        mean = self.norm.running_mean if self.bias is None else self.norm.running_mean - self.bias
        weight, bias = self.weight * scale.view(-1, 1, 1, 1), self.norm.bias - mean * scale
        x = F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        return x if self.activation is None else self.activation(x)


def apply_frozen_norms_to_weights(model: nn.Module) -> None:
    """Make every detectron2 `Conv2d` with a `FrozenBatchNorm2d` a `FrozenNormConv2d`, in place."""
    for module in model.modules():
        if type(module) is Conv2d and isinstance(module.norm, FrozenBatchNorm2d):
            module.__class__ = FrozenNormConv2d
