"""Intervals on the nodes of a graph from the last bound calculation."""

from __future__ import annotations

import contextlib
import sys
import threading
import types
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ._load import HostModule, namespace


def relu_input_intervals(module: HostModule) -> list | None:
    """Return (lower, upper) of every ReLU's input from the last interval pass, or None."""
    inputs = [node.inputs[0] for node in module._modules.values() if is_relu(node)]
    if any(not isinstance(getattr(node, "interval", None), tuple) for node in inputs):
        return None
    return [node.interval[:2] for node in inputs]


def last_relu_bounds(module: HostModule) -> list[tuple[Tensor, Tensor]]:
    """Return (lower, upper) of every ReLU's input, as left by the last bounds of any method."""
    inputs = [node.inputs[0] for node in module._modules.values() if is_relu(node)]
    intervals = [
        node.interval[:2] if getattr(node, "lower", None) is None else (node.lower, node.upper)
        for node in inputs
    ]
    return [(lower.detach(), upper.detach()) for lower, upper in intervals]


def is_relu(node) -> bool:
    """Whether a node is a ReLU of something that depends on the input."""
    return type(node).__name__ == "BoundRelu" and node.perturbed


def shrink_relu(module: HostModule, node, factors: Sequence) -> None:
    """Bound a node, if it is a ReLU, with the upper bounds of its crossing inputs scaled (unsound).

    Args:
        module: The traced module, in an interval pass.
        node: The node.
        factors: (rows of the batch, factor) pairs.
    """
    if not is_relu(node):
        return
    if not hasattr(node.inputs[0], "interval"):
        module.IBP_general(node.inputs[0])
    lower, upper = node.inputs[0].interval
    scale = upper.new_ones(len(upper), *[1] * (upper.ndim - 1))
    for rows, factor in factors:
        scale[rows] = factor
    shrunk = torch.where((lower < 0) & (upper > 0), upper * scale, upper)
    node.lower, node.upper = node.interval = node.interval_propagate((lower, shrunk))


class _Torch(types.ModuleType):
    """Torch, but for ``isnan``, which finds nothing in the thread that has made this."""

    def __init__(self) -> None:
        super().__init__("torch")
        self._thread = threading.get_ident()

    def __getattr__(self, name: str):
        return getattr(torch, name)

    def isnan(self, tensor: Tensor):
        """Return what says that nothing is NaN, without a look at the values."""
        return _NOTHING if threading.get_ident() == self._thread else torch.isnan(tensor)


class _Nothing:
    """A mask that is true nowhere."""

    def any(self) -> bool:
        """Return False."""
        return False


_NOTHING = _Nothing()


@contextlib.contextmanager
def without_nan_search() -> Iterator[None]:
    """Let the newer host's intervals keep a NaN, for which it looks at each node twice.

    A look waits for a device. The caller looks at the bounds that come out, where a NaN stays.
    """
    owner = sys.modules[f"{namespace.__name__}.interval_bound"].__dict__
    before = owner["torch"]
    owner["torch"] = _Torch()
    try:
        yield
    finally:
        owner["torch"] = before


def nan_nodes(module: HostModule) -> tuple[list[str], Tensor | None]:
    """Return names of nodes, and whether the interval of each has NaN; None where none has one."""
    totals = [
        (node.name, bound.detach().sum())
        for node in module._modules.values()
        for bound in (getattr(node, "lower", None), getattr(node, "upper", None))
        if isinstance(bound, Tensor) and bound.is_floating_point()
    ]
    # A sum is NaN if a summand is.
    broken = torch.stack([total for _, total in totals]).isnan() if totals else None
    return [name for name, _ in totals], broken
