"""Convolutions that take over what follows them: batch norms, and on CPUs activations and residual additions."""

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock
from torch import Tensor, nn
from torch.nn import functional as F


def fold_batch_norms(model: nn.Module) -> None:
    """Fold every batch norm that follows a convolution into its weights, in place.

    Known layouts: detectron2's `Conv2d` with a `norm`; the attributes `conv` and `bn` of one module; and a convolution
    followed by a batch norm in an `nn.Sequential`.
    """
    for module in list(model.modules()):
        if isinstance(module, Conv2d) and _is_batch_norm(module.norm):
            _fold(module, module.norm)
            module.norm = None
        elif isinstance(getattr(module, "conv", None), nn.Conv2d) and _is_batch_norm(getattr(module, "bn", None)):
            _fold(module.conv, module.bn)
            module.bn = nn.Identity()
        elif isinstance(module, nn.Sequential):
            for i in range(len(module) - 1):
                if type(module[i]) is nn.Conv2d and _is_batch_norm(module[i + 1]):
                    _fold(module[i], module[i + 1])
                    module[i + 1] = nn.Identity()


def _is_batch_norm(module: nn.Module | None) -> bool:
    return isinstance(module, (FrozenBatchNorm2d, nn.BatchNorm2d))


def _fold(conv: nn.Conv2d, norm: nn.Module) -> None:
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    bias = 0 if conv.bias is None else conv.bias
    conv.weight = nn.Parameter(conv.weight * scale.view(-1, 1, 1, 1), requires_grad=False)
    conv.bias = nn.Parameter((bias - norm.running_mean) * scale + norm.bias, requires_grad=False)


def fuse_convolutions(model: nn.Module) -> None:
    """Replace convolutions by oneDNN's with packed weights, which ResNets also let apply ReLU and residual addition.

    In place, on the CPU only. Batch norms must be folded before.
    """
    if next(model.parameters()).device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) in (BasicBlock, BottleneckBlock) and _is_plain(child):
                setattr(module, name, FusedBlock(child))
            elif type(child) is BasicStem and _is_plain(child):
                setattr(module, name, FusedStem(child))
            elif type(child) is Conv2d and child.norm is None and child.activation is None:
                setattr(module, name, PackedConv2d(child))


def _is_plain(block: nn.Module) -> bool:
    return all(m.norm is None and m.activation is None for m in block.modules() if isinstance(m, Conv2d))


class PackedConv2d(nn.Module):
    """A convolution whose weights lie in memory as oneDNN's kernels read them."""

    def __init__(self, conv: nn.Conv2d, relu: bool = False):
        super().__init__()
        self.geometry = (conv.padding, conv.stride, conv.dilation, conv.groups)
        self.dtype = conv.weight.dtype
        self.weight = torch.ops.mkldnn._reorder_convolution_weight(conv.weight, *self.geometry)
        self.register_buffer("bias", conv.bias)
        self.activation = "relu" if relu else "none"

    def forward(self, x: Tensor) -> Tensor:
        operator = torch.ops.mkldnn._convolution_pointwise.default
        return operator(x.to(self.dtype), self.weight, self.bias, *self.geometry, self.activation, [], None)

    def add_relu(self, x: Tensor, other: Tensor) -> Tensor:
        """ReLU of the convolution of x plus `other`."""
        operator = torch.ops.mkldnn._convolution_pointwise.binary
        x, other = x.to(self.dtype), other.to(self.dtype)
        return operator(x, other, self.weight, self.bias, *self.geometry, "add", 1.0, "relu", [], None)


class FusedBlock(nn.Module):
    """A residual block whose convolutions include ReLU and addition."""

    def __init__(self, block: BasicBlock | BottleneckBlock):
        super().__init__()
        self.shortcut = None if block.shortcut is None else PackedConv2d(block.shortcut)
        names = ("conv1", "conv2", "conv3") if isinstance(block, BottleneckBlock) else ("conv1", "conv2")
        *inner, last = (getattr(block, name) for name in names)
        self.inner = nn.Sequential(*(PackedConv2d(conv, relu=True) for conv in inner))
        self.last = PackedConv2d(last)

    def forward(self, x: Tensor) -> Tensor:
        return self.last.add_relu(self.inner(x), x if self.shortcut is None else self.shortcut(x))


class FusedStem(nn.Module):
    """The stem of a ResNet: convolution with ReLU, max pooling."""

    def __init__(self, stem: BasicStem):
        super().__init__()
        self.conv = PackedConv2d(stem.conv1, relu=True)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(self.conv(x), kernel_size=3, stride=2, padding=1)
