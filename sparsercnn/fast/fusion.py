"""Convolutions that take over what follows them: batch norms, and on CPUs activations and residual additions."""

import copy
from collections import Counter

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d, NaiveSyncBatchNorm, ShapeSpec
from detectron2.modeling import FPN, Backbone
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock, ResNet
from torch import Tensor, nn
from torch.nn import functional as F

from .convolution import FastConv2d
from .training_convolution import WinogradConv2d

ROWS_AT_ONCE = 64
"""Of the stem's convolution; even."""


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
    return type(module) in (nn.Conv2d, Conv2d, WinogradConv2d)


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


def fuse_convolutions(model: nn.Module, winograd: bool = True) -> None:
    """Replace convolutions by `FastConv2d`, which in ResNets and FPN take over ReLU and additions too.

    In place, for a CPU that `has_onednn`. Batch norms must be folded before.
    """
    children = list(model.named_children())
    for i, (name, child) in enumerate(children):
        # In a sequence the output of the block before is nobody else's.
        owns_input = type(model) is nn.Sequential and i > 0 and _is_residual(children[i - 1][1])
        fused = _fuse(child, owns_input, winograd)
        setattr(model, name, fused)
        fuse_convolutions(fused, winograd)


def _fuse(module: nn.Module, owns_input: bool, winograd: bool) -> nn.Module:
    if _is_residual(module):
        return FusedBlock(module, owns_input, winograd)
    if type(module) is BasicStem and _is_plain(module) and FusedStem.fits(module.conv1):
        return FusedStem(module)
    if type(module) is FPN and all(map(_is_plain, module.lateral_convs + module.output_convs)):
        return FusedFPN(module, winograd)
    if type(module) in (Conv2d, WinogradConv2d) and _is_plain(module):
        return FastConv2d(module, winograd=winograd)
    return module


def _is_residual(module: nn.Module) -> bool:
    return type(module) in (BasicBlock, BottleneckBlock) and _is_plain(module)


def _is_plain(module: nn.Module) -> bool:
    """Whether its convolutions are nothing but convolutions."""
    return all(
        _is_convolution(m)
        and getattr(m, "norm", None) is None
        and getattr(m, "activation", None) is None
        and not isinstance(m.padding, str)
        for m in module.modules()
        if isinstance(m, nn.Conv2d)
    )


def is_fused(backbone: nn.Module) -> bool:
    """Whether it is an FPN on a ResNet with nothing left between the convolutions that could be fused with them."""
    if not isinstance(backbone, FusedFPN) or type(backbone.bottom_up) is not ResNet:
        return False
    blocks = (block for stage in backbone.bottom_up.stages for block in stage)
    return isinstance(backbone.bottom_up.stem, FusedStem) and all(isinstance(block, FusedBlock) for block in blocks)


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
    """The stem of a ResNet, convolution with ReLU and max pooling, some rows at a time.

    The map between the two is the largest of the network. In pieces it stays in the processor's cache. The precision is
    that of the weights, also under autocast; the result has autocast's type.
    """

    @staticmethod
    def fits(conv: nn.Conv2d) -> bool:
        """Whether rows and columns are treated alike, and each window reads consecutive rows."""
        return conv.dilation == (1, 1) and len(set(conv.padding)) == len(set(conv.stride)) == 1

    def __init__(self, stem: BasicStem):
        super().__init__()
        self.padding = stem.conv1.padding[0]
        conv = copy.copy(stem.conv1)
        conv.padding = (0, 0)
        self.conv = FastConv2d(conv, relu=True)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x.to(self.conv.weight.dtype), [self.padding] * 4)
        kernel, stride = self.conv.weight.shape[2], self.conv.geometry[1][0]
        height = (x.shape[2] - kernel) // stride + 1
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        pieces = []
        for start in range(0, height, ROWS_AT_ONCE):
            # Two rows more, for the window that they begin; the one before it is complete only at the image's border.
            first, end = max(start - 2, 0), min(start + ROWS_AT_ONCE, height)
            rows = self.conv(x[:, :, stride * first : stride * (end - 1) + kernel])
            pooled = F.max_pool2d(rows, kernel_size=3, stride=2, padding=1)
            pieces.append(pooled[:, :, (start - first) // 2 :].to(dtype))
        return torch.cat(pieces, dim=2)


class FusedFPN(Backbone):
    """detectron2's FPN, whose lateral convolutions include the addition of the level above."""

    def __init__(self, fpn: FPN, winograd: bool):
        super().__init__()
        self.bottom_up = fpn.bottom_up
        self.in_features = fpn.in_features
        self.lateral = nn.ModuleList(FastConv2d(conv) for conv in fpn.lateral_convs)
        self.output = nn.ModuleList(FastConv2d(conv, winograd=winograd) for conv in fpn.output_convs)
        self.top_block = fpn.top_block
        self.is_average = fpn._fuse_type == "avg"
        self._size_divisibility = fpn.size_divisibility
        self._padding_constraints = fpn.padding_constraints
        self._output_shape = fpn.output_shape()

    @property
    def size_divisibility(self) -> int:
        return self._size_divisibility

    @property
    def padding_constraints(self) -> dict[str, int]:
        return self._padding_constraints

    def output_shape(self) -> dict[str, ShapeSpec]:
        return self._output_shape

    @property
    def finest(self) -> str:
        """Name of the level with the most pixels."""
        return next(iter(self._output_shape))

    def take_finest_output(self) -> FastConv2d:
        """The last convolution of the finest level, which from now on is returned as it is before."""
        conv, self.output[-1] = self.output[-1], nn.Identity()
        return conv

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.bottom_up(x)
        merged, outputs = None, []
        for name, lateral, output in zip(self.in_features[::-1], self.lateral, self.output, strict=True):
            above = None if merged is None else F.interpolate(merged, scale_factor=2.0, mode="nearest")
            merged = lateral(features[name], above)
            if self.is_average and above is not None:
                merged = merged / 2
            outputs.append(output(merged))
        pyramid = dict(zip(self._output_shape, outputs[::-1], strict=False))
        if self.top_block is not None:
            source = self.top_block.in_feature
            extra = self.top_block((features if source in features else pyramid)[source])
            pyramid |= zip(list(self._output_shape)[len(outputs) :], extra, strict=True)
        return pyramid
