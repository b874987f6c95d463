"""Normalization layers, and the names by which configs choose them."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from fvcore.nn.distributed import differentiable_all_reduce
from torch import Tensor, nn
from torch.nn import functional as F

from detectron2.utils import comm

from .wrappers import BatchNorm2d


class FrozenBatchNorm2d(nn.Module):
    """Batch normalization whose statistics and affine parameters never change.

    All four are buffers: they are saved and loaded, and no optimizer sees them. Checkpoints without
    running statistics (from Caffe2, which folds them into the affine parameters) load as they are.

    Args:
        num_features: number of channels.
        eps: added to the variance.
    """

    _version = 3

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        # Less eps, so that a new layer is the identity.
        self.register_buffer("running_var", torch.ones(num_features) - eps)
        self.register_buffer("num_batches_tracked", None)

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            # F.batch_norm would keep its input for gradients of the affine parameters that nobody needs.
            scale = self.weight * (self.running_var + self.eps).rsqrt()
            bias = self.bias - self.running_mean * scale
            scale = scale.reshape(1, -1, 1, 1).to(x.dtype)
            bias = bias.reshape(1, -1, 1, 1).to(x.dtype)
            return torch.addcmul(bias, x, scale)  # one pass over x, which it need not keep
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args) -> None:
        version = local_metadata.get("version", None)
        if version is None or version < 2:
            state_dict.setdefault(prefix + "running_mean", torch.zeros_like(self.running_mean))
            state_dict.setdefault(prefix + "running_var", torch.ones_like(self.running_var))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def __repr__(self) -> str:
        return f"FrozenBatchNorm2d(num_features={self.num_features}, eps={self.eps})"

    @classmethod
    def convert_frozen_batchnorm(cls, module: nn.Module) -> nn.Module:
        """Replace every BatchNorm2d and SyncBatchNorm in `module` by its frozen equivalent.

        Returns:
            `module`, changed in place, or the new layer if `module` is itself a batch norm.
        """
        return _replace_modules(module, (nn.BatchNorm2d, nn.SyncBatchNorm), cls._frozen_copy)

    @classmethod
    def convert_frozenbatchnorm2d_to_batchnorm2d(cls, module: nn.Module) -> nn.Module:
        """Replace every FrozenBatchNorm2d in `module` by a trainable `torch.nn.BatchNorm2d`.

        Returns:
            `module`, changed in place, or the new layer if `module` is itself a frozen batch norm.
        """
        return _replace_modules(module, (cls,), cls._trainable_copy)

    @classmethod
    def _frozen_copy(cls, bn: nn.BatchNorm2d | nn.SyncBatchNorm) -> "FrozenBatchNorm2d":
        frozen = cls(bn.num_features, bn.eps)
        if bn.affine:
            frozen.weight.data = bn.weight.data.clone().detach()
            frozen.bias.data = bn.bias.data.clone().detach()
        frozen.running_mean.data = bn.running_mean.data
        frozen.running_var.data = bn.running_var.data
        frozen.num_batches_tracked = bn.num_batches_tracked
        return frozen

    @classmethod
    def _trainable_copy(cls, frozen: "FrozenBatchNorm2d") -> nn.BatchNorm2d:
        bn = nn.BatchNorm2d(frozen.num_features, frozen.eps)
        bn.weight.data = frozen.weight.data.clone().detach()
        bn.bias.data = frozen.bias.data.clone().detach()
        bn.running_mean.data = frozen.running_mean.data.clone().detach()
        bn.running_var.data = frozen.running_var.data.clone().detach()
        return bn


def _replace_modules(module: nn.Module, types: tuple[type, ...], convert: Callable) -> nn.Module:
    if isinstance(module, types):
        return convert(module)
    for name, child in module.named_children():
        new_child = _replace_modules(child, types, convert)
        if new_child is not child:
            module.add_module(name, new_child)
    return module


class NaiveSyncBatchNorm(BatchNorm2d):
    """Batch norm over all processes whose workers may hold batches of different sizes.

    Args:
        stats_mode: "" weighs every worker alike and needs a non-empty batch on each; "N" weighs workers by
            their batch size and allows empty batches (but assumes images of one size).
        *args, **kwargs: as for `torch.nn.BatchNorm2d`.
    """

    def __init__(self, *args, stats_mode: str = "", **kwargs) -> None:
        super().__init__(*args, **kwargs)
        assert stats_mode in ["", "N"]
        self._stats_mode = stats_mode

    def forward(self, input: Tensor) -> Tensor:
        if comm.get_world_size() == 1 or not self.training:
            return super().forward(input)
        x = input.float() if input.dtype == torch.float16 else input
        mean, square_mean, momentum = self._global_moments(x)
        var = square_mean - mean * mean
        self.running_mean += momentum * (mean.detach() - self.running_mean)
        self.running_var += momentum * (var.detach() - self.running_var)

        scale = self.weight * torch.rsqrt(var + self.eps)
        bias = self.bias - mean * scale
        return (x * scale.reshape(1, -1, 1, 1) + bias.reshape(1, -1, 1, 1)).to(input.dtype)

    def _global_moments(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | float]:
        """Mean and mean square of each channel over all workers, and the momentum of this step."""
        batch_size, channels = x.shape[:2]
        if self._stats_mode == "":
            assert batch_size > 0, 'SyncBatchNorm(stats_mode="") does not support zero batch size.'
            moments = torch.cat([x.mean(dim=[0, 2, 3]), (x * x).mean(dim=[0, 2, 3])])
            mean, square_mean = (differentiable_all_reduce(moments) / dist.get_world_size()).split(channels)
            return mean, square_mean, self.momentum

        if batch_size == 0:
            # The sum over nothing ties the (zero) moments to the input, so that every worker runs the backward reduce.
            weighted = x.new_zeros(2 * channels + 1) + x.sum()
        else:
            weighted = torch.cat([x.mean(dim=[0, 2, 3]), (x * x).mean(dim=[0, 2, 3]), x.new_ones(1)]) * batch_size
        weighted = differentiable_all_reduce(weighted)
        total = weighted[-1].detach()
        mean, square_mean = (weighted[:-1] / total.clamp(min=1)).split(channels)
        # Statistics must not move when no worker has data.
        return mean, square_mean, total.clamp(max=1) * self.momentum


class LayerNorm(nn.Module):
    """Layer normalization over the channels of each pixel of a (B, C, H, W) tensor.

    Liu et al., A ConvNet for the 2020s, CVPR 2022.

    Args:
        normalized_shape: number of channels.
        eps: added to the variance.
    """

    def __init__(self, normalized_shape: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(normalized_shape))
        self.bias = nn.Parameter(torch.zeros(normalized_shape))
        self.eps = eps
        self.normalized_shape = (normalized_shape,)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        var = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(var + self.eps)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "BN": BatchNorm2d,
    "SyncBN": nn.SyncBatchNorm,
    "FrozenBN": FrozenBatchNorm2d,
    "GN": lambda channels: nn.GroupNorm(32, channels),
    "nnSyncBN": nn.SyncBatchNorm,
    "naiveSyncBN": NaiveSyncBatchNorm,
    "naiveSyncBN_N": lambda channels: NaiveSyncBatchNorm(channels, stats_mode="N"),
    "LN": LayerNorm,
}


def get_norm(norm: str | Callable[[int], nn.Module] | None, out_channels: int) -> nn.Module | None:
    """Build the normalization layer that a config names.

    Args:
        norm: "BN", "SyncBN", "FrozenBN", "GN", "LN", "nnSyncBN", "naiveSyncBN" or "naiveSyncBN_N"; "" or None for
            no layer; or a callable that makes a layer from the number of channels.
        out_channels: number of channels.

    Raises:
        KeyError: if no layer has this name.
    """
    if norm is None or norm == "":
        return None
    if isinstance(norm, str):
        norm = _NORMS[norm]
    return norm(out_channels)
