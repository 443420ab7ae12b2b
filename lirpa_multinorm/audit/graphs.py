"""Small networks of many graph shapes, on which bounds are audited.

Each entry of :data:`GRAPHS` is a factory of a network (B, 2, 6, 6) -> (B, 3). Several begin with an
operator other than Linear or Conv: there the host's own bounds for p < inf are unsound.
"""

from __future__ import annotations

from typing import Callable

import torch
from torch import Tensor, nn

INPUT_SHAPE = (2, 6, 6)
NUM_OUTPUTS = 3


class Lambda(nn.Module):
    """A function as a module, with an optional submodule that the function may use."""

    def __init__(self, function: Callable, inner: nn.Module | None = None) -> None:
        super().__init__()
        self.function, self.inner = function, inner

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function to x (and the inner module)."""
        return self.function(x) if self.inner is None else self.function(x, self.inner)


class Standardize(nn.Module):
    """A module of (x - mean) / std per channel, with buffers of the given shape."""

    mean: Tensor
    std: Tensor

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4, 0.5]).view(shape))
        self.register_buffer("std", torch.tensor([0.2, 0.3]).view(shape))

    def forward(self, x: Tensor) -> Tensor:
        """Return the standardised input."""
        return (x - self.mean) / self.std


def _conv(
    inputs: int = 2, outputs: int = 4, size: int = 3, stride: int = 1, padding: int = 1, **options
) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, padding, **options)


def _head(features: int) -> list:
    return [nn.Flatten(), nn.Linear(features, 8), nn.ReLU(), nn.Linear(8, NUM_OUTPUTS)]


def _conv_net(*first: nn.Module, channels: int = 2, size: int = 6) -> nn.Sequential:
    return nn.Sequential(*first, _conv(channels), nn.ReLU(), *_head(4 * size * size))


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels)
    assert norm.running_mean is not None  # it tracks them by default
    assert norm.running_var is not None
    with torch.no_grad():
        norm.running_mean.uniform_(-0.3, 0.3)
        norm.running_var.uniform_(0.5, 1.5)
        norm.weight.uniform_(-1.5, 1.5)  # also negative scales
        norm.bias.uniform_(-0.5, 0.5)
    return norm


class _Two(nn.Module):
    """Two convolutions side by side."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.a, self.b = _conv(**options), _conv(**options)


GRAPHS = {
    "mlp": lambda: nn.Sequential(*_head(72)),
    "conv": lambda: _conv_net(),
    "linear_only": lambda: nn.Sequential(nn.Flatten(), nn.Linear(72, NUM_OUTPUTS)),
    "standardize": lambda: _conv_net(Standardize(1, 2, 1, 1)),
    "standardize_chw": lambda: _conv_net(Standardize(2, 1, 1)),
    "standardize_flatten": lambda: nn.Sequential(Standardize(1, 2, 1, 1), *_head(72)),
    "scalar_normalize": lambda: _conv_net(Lambda(lambda x: (x - 0.5) / 0.25)),
    "flatten_scale": lambda: nn.Sequential(
        nn.Flatten(), Lambda(lambda x: x * 3 - 1), *_head(72)[1:]
    ),
    "relu_first": lambda: _conv_net(Lambda(lambda x: x - 0.5), nn.ReLU()),
    "sigmoid_first": lambda: _conv_net(nn.Sigmoid()),
    "max_pool_first": lambda: _conv_net(nn.MaxPool2d(2), size=3),
    "average_pool_first": lambda: _conv_net(nn.AvgPool2d(2), size=3),
    "negate": lambda: _conv_net(Lambda(lambda x: -x)),
    "scale": lambda: _conv_net(Lambda(lambda x: x * 3)),
    "one_minus": lambda: _conv_net(Lambda(lambda x: 1 - x)),
    "input_skip": lambda: nn.Sequential(
        Lambda(lambda x, conv: x + conv(x), _conv(2, 2)), nn.ReLU(), *_head(72)
    ),
    "conv_conv": lambda: nn.Sequential(_conv(), _conv(4, 4), nn.ReLU(), *_head(144)),
    "conv_batch_norm": lambda: nn.Sequential(_conv(), _batch_norm(4), nn.ReLU(), *_head(144)),
    "batch_norm_first": lambda: _conv_net(_batch_norm(2)),
    "residual": lambda: nn.Sequential(
        _conv(),
        nn.ReLU(),
        Lambda(lambda x, two: x + two.b(torch.relu(two.a(x))), _Two(inputs=4)),
        nn.ReLU(),
        *_head(144),
    ),
    "two_branches": lambda: nn.Sequential(
        Lambda(lambda x, two: two.a(x) - two.b(x), _Two()), nn.ReLU(), *_head(144)
    ),
    "strided_dilated_grouped": lambda: nn.Sequential(
        _conv(2, 4, stride=2, padding=2, dilation=2, groups=2), nn.ReLU(), *_head(36)
    ),
    "view": lambda: nn.Sequential(
        _conv(), nn.ReLU(), Lambda(lambda x: x.view(x.size(0), -1)), *_head(144)[1:]
    ),
    "tanh": lambda: nn.Sequential(_conv(), nn.Tanh(), *_head(144)),
}


def build_graph(name: str, seed: int = 0) -> nn.Module:
    """Return a network of :data:`GRAPHS` in eval mode, its weights drawn from ``seed``.

    Example:
        >>> build_graph("mlp")(torch.zeros(2, *INPUT_SHAPE)).shape
        torch.Size([2, 3])
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GRAPHS[name]().eval()
