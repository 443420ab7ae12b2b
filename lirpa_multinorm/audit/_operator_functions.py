"""Tables of functions: activations, reshapes, arithmetic, reductions, products."""

from __future__ import annotations

from typing import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .graphs import Lambda

Factory = Callable[[], nn.Module]


class _Branches(nn.Module):
    """Two layers side by side for a function of two branches."""

    def __init__(self, make: Factory) -> None:
        super().__init__()
        self.a, self.b = make(), make()


def _function(function: Callable) -> Factory:
    return lambda: Lambda(function)


def _branches(function: Callable) -> Factory:
    return lambda: Lambda(function, _Branches(lambda: nn.Linear(8, 8)))


def _image_branches(function: Callable) -> Factory:
    return lambda: Lambda(function, _Branches(lambda: nn.Conv2d(4, 4, 3, padding=1)))


class _Held(nn.Module):
    """A constant, drawn from the seed of the network."""

    def __init__(self, *shape: int, lower: float = -1.0, upper: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("value", torch.empty(shape).uniform_(lower, upper))


def _constant(function: Callable, *shape: int, **limits: float) -> Factory:
    """Return the factory of a function of x and a constant of some shape."""
    return lambda: Lambda(lambda x, held: function(x, held.value), _Held(*shape, **limits))


def _written(target: Tensor, x: Tensor) -> Tensor:
    """Write every second row of x into another tensor."""
    target[:, :, ::2] = x[:, :, 1::2]
    return target


def _prelu(parameters: int) -> nn.Module:
    layer = nn.PReLU(parameters)
    with torch.no_grad():
        layer.weight.uniform_(-0.5, 1.5)
    return layer


def _min_max(x: Tensor) -> Tensor:
    """Sort neighbouring pairs of channels."""
    first, second = x[:, ::2], x[:, 1::2]
    return torch.cat([torch.maximum(first, second), torch.minimum(first, second)], dim=1)


ACTIVATIONS = {
    "ReLU": lambda: nn.ReLU(),
    "LeakyReLU(0.1)": lambda: nn.LeakyReLU(0.1),
    "LeakyReLU(-0.2)": lambda: nn.LeakyReLU(-0.2),
    "LeakyReLU(1.5)": lambda: nn.LeakyReLU(1.5),
    "PReLU": lambda: nn.PReLU(),
    "PReLU(8)": lambda: _prelu(8),
    "RReLU in eval": lambda: nn.RReLU(),
    "ReLU6": lambda: nn.Sequential(Lambda(lambda x: x * 8), nn.ReLU6()),
    "Hardtanh": lambda: nn.Hardtanh(),
    "Hardtanh(-0.2, 0.3)": lambda: nn.Hardtanh(-0.2, 0.3),
    "Threshold(0.1, -0.5)": lambda: nn.Threshold(0.1, -0.5),
    "Hardshrink": lambda: nn.Hardshrink(0.2),
    "Softshrink": lambda: nn.Softshrink(0.2),
    "Tanhshrink": lambda: nn.Tanhshrink(),
    "ELU": lambda: nn.ELU(),
    "ELU(alpha=0.3)": lambda: nn.ELU(0.3),
    "SELU": lambda: nn.SELU(),
    "CELU(alpha=2)": lambda: nn.CELU(2.0),
    "GELU": lambda: nn.GELU(),
    "GELU(approximate='tanh')": lambda: nn.GELU("tanh"),
    "SiLU": lambda: nn.SiLU(),
    "Mish": lambda: nn.Mish(),
    "Softplus": lambda: nn.Softplus(),
    "Softplus(beta=3)": lambda: nn.Softplus(beta=3),
    "Softplus(beta=2, threshold=0.5)": lambda: nn.Softplus(beta=2, threshold=0.5),
    "Sigmoid": lambda: nn.Sigmoid(),
    "LogSigmoid": lambda: nn.LogSigmoid(),
    "Tanh": lambda: nn.Tanh(),
    "Hardsigmoid": lambda: nn.Sequential(Lambda(lambda x: x * 6), nn.Hardsigmoid()),
    "Hardswish": lambda: nn.Sequential(Lambda(lambda x: x * 6), nn.Hardswish()),
    "Softmax": lambda: nn.Softmax(1),
    "Softmin": lambda: nn.Softmin(1),
    "LogSoftmax": lambda: nn.LogSoftmax(1),
    "Softsign": lambda: nn.Softsign(),
    "GLU": lambda: nn.GLU(),
    "abs": _function(torch.abs),
    "sign": _function(torch.sign),
    "floor": _function(lambda x: torch.floor(4 * x)),
    "clamp(-0.2, 0.3)": _function(lambda x: x.clamp(-0.2, 0.3)),
    "clamp(min=-0.1)": _function(lambda x: x.clamp(min=-0.1)),
    "clamp(max=0.1)": _function(lambda x: x.clamp(max=0.1)),
    "clamp between tensors": _constant(lambda x, c: x.clamp(-c.abs(), c.abs() / 2), 8),
    "clamp(min above max)": _function(lambda x: x.clamp(0.2, -0.1)),
    "clamp between branches": _branches(lambda x, two: x.clamp(two.a(x), two.b(x))),
    "hinge": _function(lambda x: (1 - 3 * x).clamp(min=0)),
    "Threshold without a jump": lambda: nn.Threshold(0.1, 0.1),
    "ReLU in place": lambda: nn.ReLU(inplace=True),
    "LeakyReLU in place": lambda: nn.LeakyReLU(0.2, inplace=True),
    "Hardtanh in place": lambda: nn.Hardtanh(-0.2, 0.3, inplace=True),
    "fmax of two branches": _branches(lambda x, two: torch.fmax(two.a(x), two.b(x))),
    "GroupSort(2)": _function(lambda x: x.view(x.size(0), 4, 2).sort(2)[0].flatten(1)),
    "GroupSort(4), descending": _function(
        lambda x: x.view(x.size(0), 2, 4).sort(2, descending=True).values.flatten(1)
    ),
    "maximum with a constant": _constant(lambda x, c: torch.maximum(x, c), 8),
    "minimum with a constant": _constant(lambda x, c: torch.minimum(x, c), 8),
    "maximum of two branches": _branches(lambda x, two: torch.maximum(two.a(x), two.b(x))),
    "minimum of two branches": _branches(lambda x, two: torch.minimum(two.a(x), two.b(x))),
    "where(x > 0)": _function(lambda x: torch.where(x > 0, x, 0.3 * x)),
    "sin": _function(lambda x: torch.sin(3 * x)),
    "cos": _function(lambda x: torch.cos(3 * x)),
    "exp": _function(torch.exp),
    "x ** 2": _function(lambda x: x**2),
    "x ** 3": _function(lambda x: x**3),
    "x * x": _function(lambda x: x * x),
    "square": _function(torch.square),
    "MinMax": _function(_min_max),
    "erf": _function(torch.erf),
    "atan": _function(torch.atan),
}
POSITIVE = {  # on values around 2
    "sqrt": _function(torch.sqrt),
    "log": _function(torch.log),
    "x ** -1": _function(lambda x: x**-1),
    "x ** 0.5": _function(lambda x: x**0.5),
    "x ** 2 of positive values": _function(lambda x: x**2),
    "reciprocal": _function(torch.reciprocal),
    "rsqrt": _function(torch.rsqrt),
    "constant / x": _function(lambda x: 2 / x),
    "branch / branch": _branches(lambda x, two: two.a(x) / (two.b(x) ** 2 + 1)),
}
SHAPES = {
    "movedim": _function(lambda x: x.movedim(1, 3)),
    "hstack": _function(lambda x: torch.hstack([x, -x])),
    "unfold": _function(lambda x: x.unfold(2, 3, 2).flatten(3)),
    "F.unfold": _function(lambda x: F.unfold(x, 3, padding=1, stride=2)),
    "F.fold": _function(lambda x: F.fold(x.reshape(x.size(0), 16, 9), (4, 4), 2)),
    "masked_fill": _constant(lambda x, c: x.masked_fill(c > 0, 0.5), 6, 6),
    "where(fixed mask)": _constant(lambda x, c: torch.where(c > 0, x, 2 * x), 6, 6),
    "index_select": _function(
        lambda x: x.index_select(2, torch.tensor([5, 0, 0], device=x.device))
    ),
    "narrow": _function(lambda x: x.narrow(3, 1, 4)),
    "diff": _function(lambda x: x.diff(dim=3)),
    "add in place": _function(lambda x: (x * 2).add_(0.3)),
    "write into zeros": _function(lambda x: _written(torch.zeros_like(x), x)),
    "reshape": _function(lambda x: x.reshape(x.size(0), 9, 4, 4)),
    "view and ReLU": _function(lambda x: torch.relu(x.view(x.size(0), -1))),
    "flatten(1)": _function(lambda x: x.flatten(1)),
    "Flatten(start_dim=2)": lambda: nn.Flatten(start_dim=2),
    "Flatten(1, 2)": lambda: nn.Flatten(1, 2),
    "Unflatten": lambda: nn.Sequential(nn.Flatten(), nn.Unflatten(1, (4, 6, 6))),
    "permute": _function(lambda x: x.permute(0, 2, 3, 1)),
    "transpose": _function(lambda x: x.transpose(2, 3)),
    "transpose(1, 3)": _function(lambda x: x.transpose(1, 3)),
    "squeeze": _function(lambda x: x.mean(3, keepdim=True).squeeze(3)),
    "unsqueeze": _function(lambda x: x.mean(3).unsqueeze(1)),
    "expand": _function(lambda x: x.mean(3, keepdim=True).expand(x.size(0), 4, 6, 5)),
    "repeat": _function(lambda x: x.repeat(1, 2, 1, 1)),
    "stack": _function(lambda x: torch.stack([x.mean(3), x.mean(2)], 1)),
    "cat of channels": _function(lambda x: torch.cat([x, -x], 1)),
    "cat of rows": _function(lambda x: torch.cat([x, 2 * x], 2)),
    "cat with a constant": _constant(
        lambda x, c: torch.cat([x, c.expand(x.size(0), 1, 6, 6)], 1), 1, 1, 6, 6
    ),
    "slice": _function(lambda x: x[:, 1:3, :, 2:]),
    "slice with steps": _function(lambda x: x[:, :, ::2, 1::3]),
    "index of a channel": _function(lambda x: x[:, 1]),
    "index by a list": _function(lambda x: x[:, [2, 0, 0]]),
    "negative slice": _function(lambda x: x[:, :, -3:-1]),
    "split": _function(lambda x: torch.cat(x.split([1, 3], 1)[::-1], 1)),
    "chunk": _function(lambda x: x.chunk(2, 1)[0] - x.chunk(2, 1)[1]),
    "select": _function(lambda x: x.select(3, 2)),
    "flip": _function(lambda x: x.flip(3)),
    "roll": _function(lambda x: x.roll(2, 3)),
    "rot90": _function(lambda x: torch.rot90(x, 1, (2, 3))),
    "pad(0)": _function(lambda x: F.pad(x, (1, 2, 0, 1))),
    "pad(value=0.5)": _function(lambda x: F.pad(x, (1, 1, 1, 1), value=0.5)),
    "pad(negative)": _function(lambda x: F.pad(x, (-1, 0, 0, -1))),
    "pad(channels)": _function(lambda x: F.pad(x, (0, 0, 0, 0, 1, 1))),
    "pad(mode='reflect')": _function(lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect")),
    "ZeroPad2d": lambda: nn.ZeroPad2d((1, 0, 2, 0)),
    "ConstantPad2d(0.5)": lambda: nn.ConstantPad2d(1, 0.5),
    "ReflectionPad2d": lambda: nn.ReflectionPad2d(1),
    "ReplicationPad2d": lambda: nn.ReplicationPad2d(1),
    "ChannelShuffle(2)": lambda: nn.ChannelShuffle(2),
    "contiguous and clone": _function(lambda x: x.transpose(2, 3).contiguous().clone()),
    "tril": _function(lambda x: x.tril()),
}
ROW_SHAPES = {
    "repeat of a row": _function(lambda x: x.repeat(1, 2)),
    "tile": _function(lambda x: x.tile(1, 2)),
    "repeat_interleave": _function(lambda x: x.repeat_interleave(2, 1)),
    "slice of a row": _function(lambda x: x[:, 2:7:2]),
    "gather": _function(lambda x: x[:, torch.tensor([3, 1, 1, 0], device=x.device)]),
}
ARITHMETIC = {
    "x + scalar": _function(lambda x: x + 0.3),
    "scalar - x": _function(lambda x: 0.3 - x),
    "x * scalar": _function(lambda x: x * -1.5),
    "x / scalar": _function(lambda x: x / 0.4),
    "neg": _function(torch.neg),
    "x + channel": _constant(torch.add, 4, 1, 1),
    "x - channel of a batch": _constant(torch.sub, 1, 4, 1, 1),
    "x * channel": _constant(torch.mul, 4, 1, 1),
    "x / channel": _constant(torch.div, 1, 4, 1, 1, lower=0.3, upper=1.0),
    "x + row": _constant(torch.add, 6),
    "x * column": _constant(torch.mul, 6, 1),
    "x + full": _constant(torch.add, 4, 6, 6),
    "x * full": _constant(torch.mul, 1, 4, 6, 6),
    "full - x": _constant(lambda x, c: c - x, 4, 6, 6),
    "x * scalar tensor": _constant(torch.mul),
    "x * wider": _constant(lambda x, c: x.mean(3, keepdim=True) * c, 1, 1, 1, 5),
    "x + wider": _constant(lambda x, c: x.mean(3, keepdim=True) + c, 6, 5),
    "x + y of two branches": _image_branches(lambda x, two: two.a(x) + two.b(x)),
    "x - y of two branches": _image_branches(lambda x, two: two.a(x) - two.b(x)),
    "x * y of two branches": _image_branches(lambda x, two: two.a(x) * two.b(x)),
    "x * y, y a mean": _image_branches(
        lambda x, two: two.a(x) * torch.sigmoid(two.b(x).mean((2, 3), keepdim=True))
    ),
    "lerp": _image_branches(lambda x, two: torch.lerp(two.a(x), two.b(x), 0.3)),
    "concat skip": _image_branches(lambda x, two: torch.cat([x, torch.relu(two.a(x))], 1)),
    "input skip": _image_branches(lambda x, two: torch.relu(x + two.b(torch.relu(two.a(x))))),
    "gated": _image_branches(lambda x, two: two.a(x) * torch.sigmoid(two.b(x))),
    "gated skip": _image_branches(lambda x, two: x + two.a(x) * torch.sigmoid(two.b(x))),
    "shared layer": _image_branches(lambda x, two: two.a(torch.relu(two.a(x)))),
    "skip past pooling": _image_branches(
        lambda x, two: F.avg_pool2d(x, 2) + F.max_pool2d(two.a(x), 2)
    ),
}
REDUCTIONS = {
    "l_1 norm": _function(lambda x: torch.linalg.vector_norm(x, 1, dim=(2, 3))),
    "l_inf norm": _function(lambda x: torch.linalg.vector_norm(x, float("inf"), dim=3)),
    "max of all": _function(lambda x: x.flatten(1).max(1, keepdim=True)[0]),
    "max over channels less the mean": _function(lambda x: x.amax(1) - x.mean(1)),
    "mean((2, 3))": _function(lambda x: x.mean((2, 3))),
    "mean(1, keepdim=True)": _function(lambda x: x.mean(1, keepdim=True)),
    "mean(-1)": _function(lambda x: x.mean(-1)),
    "sum(2)": _function(lambda x: x.sum(2)),
    "sum((2, 3), keepdim=True)": _function(lambda x: x.sum((2, 3), keepdim=True)),
    "max(1)": _function(lambda x: x.max(1).values),
    "amax((2, 3))": _function(lambda x: x.amax((2, 3))),
    "min(3)": _function(lambda x: x.min(3).values),
    "norm(3)": _function(lambda x: x.norm(dim=3)),
    "var(3)": _function(lambda x: x.var(3)),
    "logsumexp(1)": _function(lambda x: x.logsumexp(1)),
    "prod(3)": _function(lambda x: x.prod(3)),
    "cumsum(1)": _function(lambda x: x.cumsum(1)),
    "topk(2)": _function(lambda x: x.topk(2, 1).values),
    "sort(1)": _function(lambda x: x.sort(1).values),
}
PRODUCTS = {
    "matmul, constant right": _constant(torch.matmul, 6, 5),
    "matmul, constant left": _constant(lambda x, c: torch.matmul(c, x), 5, 6),
    "matmul of two branches": _image_branches(lambda x, two: torch.matmul(two.a(x), two.b(x))),
    "softmax attention": _image_branches(
        lambda x, two: torch.softmax(two.a(x) @ two.b(x).transpose(2, 3), 3) @ x
    ),
    "linear on the last axis": lambda: nn.Linear(6, 5),
    "einsum, constant": _constant(lambda x, c: torch.einsum("bchw,cd->bdhw", x, c), 4, 3),
}
