"""Formulas written out: what the tests hold the necks against."""

import torch
import torch.nn.functional as F

SIZES = {"even": ((48, 80), (24, 40), (12, 20), (6, 10)), "odd": ((41, 75), (21, 38), (11, 19), (6, 10))}
"""Heights and widths of res2 to res5, each the one before halved and rounded up."""


def random_features(input_shapes, sizes):
    """Normal random maps, two images each."""
    shapes = zip(input_shapes.items(), sizes[-len(input_shapes) :], strict=True)
    return {name: torch.randn(2, shape.channels, *size) for (name, shape), size in shapes}


def conv(layer, x, stride=1):
    """What a convolution with same padding computes, without its norm and activation."""
    return F.conv2d(x, layer.weight, layer.bias, stride, layer.kernel_size[0] // 2, 1, layer.groups)


def batch_norm(norm, x):
    """(x − mean) / sqrt(variance + ε) · weight + bias, with the running statistics."""
    mean, variance, weight, bias = (
        t.view(-1, 1, 1) for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    return (x - mean) / (variance + norm.eps).sqrt() * weight + bias


def silu(x):
    return x / (1 + (-x).exp())


def sigmoid(x):
    return 1 / (1 + (-x).exp())


def nearest(x, size):
    """Row i of `size` reads row floor(i · H / size[0]), columns likewise."""
    rows, columns = (torch.arange(new) * old // new for new, old in zip(size, x.shape[-2:], strict=True))
    return x[..., rows[:, None], columns]


def randomize(module):
    """Give every parameter and running statistic a value that no formula can do without."""
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5) if name.endswith("running_var") else tensor.normal_(0, 0.3)
    return module
