"""Intervals on the nodes of a graph from the last bound calculation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._load import HostModule


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


def nan_node(module: HostModule):
    """Return the name of a node whose interval contains NaN, or None."""
    totals = [
        (node.name, bound.detach().sum())
        for node in module._modules.values()
        for bound in (getattr(node, "lower", None), getattr(node, "upper", None))
        if isinstance(bound, Tensor) and bound.is_floating_point()
    ]
    # A sum is NaN if a summand is; a single look at all of them together.
    if not totals or not bool(torch.stack([total for _, total in totals]).isnan().any()):
        return None
    return next(name for name, total in totals if bool(total.isnan()))
