"""Convolutions that take over what follows them: batch norms, and on CPUs activations and residual additions."""

import math

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d, NaiveSyncBatchNorm
from detectron2.modeling import FPN
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock
from torch import Tensor, nn
from torch.nn import functional as F

from .convolution import FastConv2d


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
    # Subclasses do more: those of timm apply an activation too.
    if type(module) not in (FrozenBatchNorm2d, nn.BatchNorm2d, nn.SyncBatchNorm, NaiveSyncBatchNorm):
        return False
    return module.weight is not None and module.running_var is not None


def _fold(conv: nn.Conv2d, norm: nn.Module) -> None:
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    bias = 0 if conv.bias is None else conv.bias
    conv.weight = nn.Parameter(conv.weight * scale.view(-1, 1, 1, 1), requires_grad=False)
    conv.bias = nn.Parameter((bias - norm.running_mean) * scale + norm.bias, requires_grad=False)


def fuse_convolutions(model: nn.Module) -> None:
    """Replace convolutions by `FastConv2d`, which in ResNets take over ReLU and residual addition too.

    In place, on the CPU only. Batch norms must be folded before.
    """
    if next(model.parameters()).device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return
    for module in list(model.modules()):
        for i, (name, child) in enumerate(list(module.named_children())):
            if type(child) in (BasicBlock, BottleneckBlock) and _is_plain(child):
                setattr(module, name, FusedBlock(child, keeps_input=i == 0))
            elif type(child) is BasicStem and _is_plain(child):
                setattr(module, name, FusedStem(child))
            elif type(child) is Conv2d and child.norm is None and child.activation is None:
                setattr(module, name, FastConv2d(child))
        if isinstance(module, FPN):  # which also keeps its convolutions in lists
            levels = [int(math.log2(module.bottom_up.output_shape()[f].stride)) for f in module.in_features[::-1]]
            module.lateral_convs = [getattr(module, f"fpn_lateral{level}") for level in levels]
            module.output_convs = [getattr(module, f"fpn_output{level}") for level in levels]


def _is_plain(block: nn.Module) -> bool:
    return all(m.norm is None and m.activation is None for m in block.modules() if isinstance(m, Conv2d))


class FusedBlock(nn.Module):
    """A residual block whose convolutions include ReLU and addition.

    Args:
        keeps_input: others read the input too. If not, a block without shortcut convolution may overwrite it.
    """

    def __init__(self, block: BasicBlock | BottleneckBlock, keeps_input: bool):
        super().__init__()
        self.shortcut = None if block.shortcut is None else FastConv2d(block.shortcut)
        self.keeps_input = keeps_input
        names = ("conv1", "conv2", "conv3") if isinstance(block, BottleneckBlock) else ("conv1", "conv2")
        *inner, last = (getattr(block, name) for name in names)
        self.inner = nn.Sequential(*(FastConv2d(conv, relu=True) for conv in inner))
        self.last = FastConv2d(last, relu=True)

    def forward(self, x: Tensor) -> Tensor:
        if self.shortcut is not None:
            residual = self.shortcut(x)
        else:
            residual = x.clone() if self.keeps_input else x
        return self.last(self.inner(x), residual)


class FusedStem(nn.Module):
    """The stem of a ResNet: convolution with ReLU, max pooling."""

    def __init__(self, stem: BasicStem):
        super().__init__()
        self.conv = FastConv2d(stem.conv1, relu=True)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(self.conv(x), kernel_size=3, stride=2, padding=1)
