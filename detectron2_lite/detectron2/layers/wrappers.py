"""torch layers and functions with the small extras that detection models need."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

BatchNorm2d = torch.nn.BatchNorm2d
ConvTranspose2d = torch.nn.ConvTranspose2d
Linear = torch.nn.Linear
interpolate = F.interpolate


class Conv2d(torch.nn.Conv2d):
    """`torch.nn.Conv2d` followed by an optional normalization and activation.

    Args:
        norm: a normalization layer, applied to the output of the convolution.
        activation: a callable, applied last.
        *args, **kwargs: as for `torch.nn.Conv2d`.
    """

    def __init__(self, *args, **kwargs) -> None:
        norm = kwargs.pop("norm", None)
        activation = kwargs.pop("activation", None)
        super().__init__(*args, **kwargs)
        self.norm = norm
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting() and x.numel() == 0 and self.training:
            assert not isinstance(self.norm, torch.nn.SyncBatchNorm), "SyncBatchNorm does not support empty inputs!"
        x = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        if self.norm is not None:
            x = self.norm(x)
        if self.activation is not None:
            x = self.activation(x)
        return x


def cat(tensors: list[Tensor], dim: int = 0) -> Tensor:
    """`torch.cat` that does not copy a single tensor."""
    assert isinstance(tensors, (list, tuple))
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim)


def empty_input_loss_func_wrapper(loss_func: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same loss, but zero (connected to the graph) instead of NaN for the mean over nothing."""

    def wrapped_loss_func(input: Tensor, target: Tensor, *, reduction: str = "mean", **kwargs) -> Tensor:
        if target.numel() == 0 and reduction == "mean":
            return input.sum() * 0.0
        return loss_func(input, target, reduction=reduction, **kwargs)

    return wrapped_loss_func


cross_entropy = empty_input_loss_func_wrapper(F.cross_entropy)


def nonzero_tuple(x: Tensor):
    """`x.nonzero(as_tuple=True)`, also inside TorchScript (where it is a list, so no annotation fits both)."""
    if torch.jit.is_scripting():
        if x.dim() == 0:
            return x.unsqueeze(0).nonzero().unbind(1)
        return x.nonzero().unbind(1)
    return x.nonzero(as_tuple=True)


def shapes_to_tensor(x: list[int], device: torch.device | None = None) -> Tensor:
    """Integers as a tensor, keeping those that a tracer sees as tensors part of the traced graph."""
    if torch.jit.is_scripting():
        return torch.as_tensor(x, device=device)
    if torch.jit.is_tracing():
        assert all(isinstance(t, Tensor) for t in x), "Shape should be tensor during tracing!"
        stacked = torch.stack(x)
        return stacked if stacked.device == device or device is None else stacked.to(device=device)
    return torch.as_tensor(x, device=device)


@torch.jit.script_if_tracing
def move_device_like(src: Tensor, dst: Tensor) -> Tensor:
    """`src` on the device of `dst`; a traced graph follows the device it later runs on."""
    return src.to(dst.device)
