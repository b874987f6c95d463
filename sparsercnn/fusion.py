"""Convolutions that take over what follows them: batch norms, and on CPUs activations and residual additions."""

import math
from collections import Counter

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d, NaiveSyncBatchNorm
from detectron2.modeling import FPN
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock
from torch import Tensor, nn
from torch.nn import functional as F

from .convolution import FastConv2d, has_fast_convolutions
from .frozen_batch_norm import FrozenNormConv2d


def fold_batch_norms(model: nn.Module) -> None:
    """Fold batch norms that follow a convolution into its weights, in place.

    Known layouts: detectron2's `Conv2d` with a `norm`; the attributes `conv` and `bn` of one module, in that order; and
    a convolution followed by a batch norm in an `nn.Sequential`. Kinds of convolutions or norms that may do more, and
    those that several modules share, stay as they are.
    """
    uses = Counter(id(module) for name, module in model.named_modules(remove_duplicate=False) if name)

    def fits(conv: nn.Module | None, norm: nn.Module | None) -> bool:
        return _is_convolution(conv) and _is_batch_norm(norm) and uses[id(conv)] == uses[id(norm)] == 1

    for module in list(model.modules()):
        if _is_convolution(module) and fits(module, getattr(module, "norm", None)):
            _fold(module, module.norm)
            module.norm = None
        elif isinstance(module, nn.Sequential):
            for i in range(len(module) - 1):
                if fits(module[i], module[i + 1]) and getattr(module[i], "activation", None) is None:
                    _fold(module[i], module[i + 1])
                    module[i + 1] = nn.Identity()
        elif [name for name, _ in module.named_children() if name in ("conv", "bn")] == ["conv", "bn"]:
            if fits(module.conv, module.bn):
                _fold(module.conv, module.bn)
                module.bn = nn.Identity()


def _is_convolution(module: nn.Module | None) -> bool:
    return type(module) in (nn.Conv2d, Conv2d, FrozenNormConv2d)


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


def fuse_convolutions(model: nn.Module, dtype: torch.dtype, winograd: bool = True) -> None:
    """Replace convolutions by `FastConv2d`, which in ResNets take over ReLU and residual addition too.

    In place, and only on CPUs that have instructions for the type of the weights. Batch norms must be folded before.
    """
    if next(model.parameters()).device.type != "cpu" or not has_fast_convolutions(dtype):
        return
    for module in list(model.modules()):
        children = list(module.named_children())
        for i, (name, child) in enumerate(children):
            if _is_residual(child):
                # The output of the block before is nobody else's.
                owns_input = type(module) is nn.Sequential and i > 0 and _is_residual(children[i - 1][1])
                setattr(module, name, FusedBlock(child, owns_input, winograd))
            elif type(child) is BasicStem and _is_plain(child):
                setattr(module, name, FusedStem(child))
            elif type(child) in (Conv2d, FrozenNormConv2d) and _is_plain(child):
                setattr(module, name, FastConv2d(child, winograd=winograd))
        if type(module) is FPN:  # which also keeps its convolutions in lists
            levels = [int(math.log2(module.bottom_up.output_shape()[f].stride)) for f in module.in_features[::-1]]
            module.lateral_convs = [getattr(module, f"fpn_lateral{level}") for level in levels]
            module.output_convs = [getattr(module, f"fpn_output{level}") for level in levels]


def _is_residual(module: nn.Module) -> bool:
    return type(module) in (BasicBlock, BottleneckBlock) and _is_plain(module)


def _is_plain(module: nn.Module) -> bool:
    """Whether its convolutions are nothing but convolutions."""
    return all(
        _is_convolution(m) and m.norm is None and m.activation is None and not isinstance(m.padding, str)
        for m in module.modules()
        if isinstance(m, nn.Conv2d)
    )


class FusedBlock(nn.Module):
    """A residual block whose convolutions include ReLU and addition.

    Args:
        owns_input: nobody else reads the input, so that a block without shortcut convolution may overwrite it.
    """

    def __init__(self, block: BasicBlock | BottleneckBlock, owns_input: bool, winograd: bool):
        super().__init__()
        self.shortcut = None if block.shortcut is None else FastConv2d(block.shortcut)
        self.owns_input = owns_input
        names = ("conv1", "conv2", "conv3") if isinstance(block, BottleneckBlock) else ("conv1", "conv2")
        *inner, last = (getattr(block, name) for name in names)
        self.inner = nn.Sequential(*(FastConv2d(conv, relu=True, winograd=winograd) for conv in inner))
        self.last = FastConv2d(last, relu=True, winograd=winograd)

    def forward(self, x: Tensor) -> Tensor:
        if self.shortcut is not None:
            residual = self.shortcut(x)
        else:
            residual = x if self.owns_input else x.clone()
        return self.last(self.inner(x), residual)


class FusedStem(nn.Module):
    """The stem of a ResNet: convolution with ReLU, max pooling."""

    def __init__(self, stem: BasicStem):
        super().__init__()
        self.conv = FastConv2d(stem.conv1, relu=True)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(self.conv(x), kernel_size=3, stride=2, padding=1)
