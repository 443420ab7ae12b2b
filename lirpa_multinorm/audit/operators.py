"""Operators with their options, each inside a small network, on which bounds are audited.

Each entry of :data:`OPERATORS` stands between affine layers, so that it acts on perturbed values
and what follows it is bounded through it: images (B, 2, 6, 6) or rows (B, 12) -> (B, 3), heads
apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Callable, NamedTuple

import torch
from torch import nn

from . import _operator_functions as functions
from . import _operator_layers as layers
from .graphs import INPUT_SHAPE, NUM_OUTPUTS, Lambda

ROW_SHAPE = (12,)
Factory = Callable[[], nn.Module]


class Operator(NamedTuple):
    """An operator under audit.

    Args:
        group: What kind of operator it is.
        input_shape: Shape of the network's inputs, without the batch.
        build: Returns the network, its weights drawn from torch's generator.
    """

    group: str
    input_shape: tuple[int, ...]
    build: Factory


def _followed(first: Sequence[nn.Module], shape: tuple[int, ...]) -> nn.Module:
    """Return the layers followed by affine ones and a ReLU, whatever the shape of their output."""
    with torch.no_grad():
        inner = nn.Sequential(*first).eval()(torch.rand(2, *shape, device="cpu")).shape[1:]
    if len(inner) == 3:
        return nn.Sequential(
            *first,
            nn.Conv2d(inner[0], 3, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(3 * inner[1] * inner[2], NUM_OUTPUTS),
        )
    flat = [nn.Flatten()] if len(inner) > 1 else []
    return nn.Sequential(
        *first, *flat, nn.Linear(inner.numel(), 6), nn.ReLU(), nn.Linear(6, NUM_OUTPUTS)
    )


def _image_network(make: Factory) -> nn.Module:
    return _followed([nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), make()], INPUT_SHAPE)


def _signal_network(make: Factory) -> nn.Module:
    as_signal = Lambda(lambda x: x.view(x.size(0), 2, 6))
    return _followed([nn.Linear(*ROW_SHAPE, 12), nn.ReLU(), as_signal, make()], ROW_SHAPE)


def _row_network(make: Factory) -> nn.Module:
    return _followed([nn.Linear(*ROW_SHAPE, 8), make()], ROW_SHAPE)


def _positive_network(make: Factory) -> nn.Module:
    """Return a network whose operator has inputs around 2, above 0 in the sets of the audit."""
    first = nn.Linear(*ROW_SHAPE, 8)
    with torch.no_grad():
        first.weight.mul_(0.3)
        first.bias.fill_(2.0)
    return _followed([first, make()], ROW_SHAPE)


def _head(outputs: int, *after: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(*ROW_SHAPE, 8), nn.ReLU(), nn.Linear(8, outputs), *after)


HEADS = {
    "head of 1 output": lambda: _head(1),
    "head of 2 outputs": lambda: _head(2),
    "head of 200 outputs": lambda: _head(200),
    "Softmax as head": lambda: _head(3, nn.Softmax(1)),
    "LogSoftmax as head": lambda: _head(3, nn.LogSoftmax(1)),
    "ReLU as head": lambda: _head(3, nn.ReLU()),
}


def _operators(
    group: str,
    table: Mapping[str, Factory],
    network: Callable[[Factory], nn.Module],
    shape: tuple[int, ...],
) -> dict[str, Operator]:
    return {name: Operator(group, shape, partial(network, make)) for name, make in table.items()}


OPERATORS: dict[str, Operator] = {
    **_operators("convolutions", layers.CONVOLUTIONS, _image_network, INPUT_SHAPE),
    **_operators("convolutions", layers.SIGNAL_CONVOLUTIONS, _signal_network, ROW_SHAPE),
    **_operators("pooling and upsampling", layers.POOLING, _image_network, INPUT_SHAPE),
    **_operators("pooling and upsampling", layers.SIGNAL_POOLING, _signal_network, ROW_SHAPE),
    **_operators("normalisations", layers.IMAGE_NORMS, _image_network, INPUT_SHAPE),
    **_operators("normalisations", layers.ROW_NORMS, _row_network, ROW_SHAPE),
    **_operators("activations", functions.ACTIVATIONS, _row_network, ROW_SHAPE),
    **_operators("activations", functions.POSITIVE, _positive_network, ROW_SHAPE),
    **_operators("reshapes", functions.SHAPES, _image_network, INPUT_SHAPE),
    **_operators("reshapes", functions.ROW_SHAPES, _row_network, ROW_SHAPE),
    **_operators("arithmetic", functions.ARITHMETIC, _image_network, INPUT_SHAPE),
    **_operators("reductions", functions.REDUCTIONS, _image_network, INPUT_SHAPE),
    **_operators("products", functions.PRODUCTS, _image_network, INPUT_SHAPE),
    **_operators("heads", HEADS, lambda build: build(), ROW_SHAPE),
}


def build_operator(name: str, seed: int = 0) -> nn.Module:
    """Return the network of an entry of :data:`OPERATORS` in eval mode.

    Its weights are drawn from ``seed``.

    Example:
        >>> shape = OPERATORS["MaxPool2d(2)"].input_shape
        >>> build_operator("MaxPool2d(2)")(torch.zeros(2, *shape)).shape
        torch.Size([2, 3])
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return OPERATORS[name].build().eval()
